//! Other tars out of one: entries are moved, copied and left out, fields set to what another field or a list holds, and checksums mended.

use std::ops::Range;

use crate::{Mutate, Rng};

const FLAGS: &[u8] = b"01234567xgLKSXVDM\0";
const NAMES: &[&[u8]] = &[
    b"a",
    b"a/",
    b"a/b",
    b"a/b/c",
    b"./",
    b"/",
    b"..",
    b"../x",
    b"a/..",
    b"a/../b",
    b".wh.a",
    b".wh.b",
    b"a/.wh.b",
    b".wh..wh..opq",
    b"a/.wh..wh..opq",
    b".wh..wh.plnk",
    b".wh.",
    b".wh..",
    b"b",
    b"b/a",
    b"",
];
const NUMBERS: &[&[u8]] = &[
    b"0000000",
    b"0000001",
    b"7777777",
    b"00000000777",
    b"00000001000",
    b"77777777777",
    b" 644 ",
    b"-1",
    b"8",
    b"\x80\0\0\0\0\0\0\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"",
    b"0000755\0",
    b"\x80\0\0\0\0\0\0\0\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"00000010000",
    b"00000100000",
];
/// Where the numbers lie in a header.
const FIELDS: &[Range<usize>] = &[
    100..108,
    108..116,
    116..124,
    124..136,
    136..148,
    329..337,
    337..345,
    345..357,
    357..369,
    386..398,
    398..410,
    483..495,
];
const MAGICS: &[&[u8]] = &[b"ustar\x0000", b"ustar  \0", b"\0\0\0\0\0\0\0\0"];
const RECORDS: &[(&[u8], &[u8])] = &[
    (b"path", b"a/long/name"),
    (b"path", b"../x"),
    (b"path", b""),
    (b"linkpath", b"a"),
    (b"linkpath", b"b"),
    (b"size", b"3"),
    (b"size", b"512"),
    (b"size", b"-1"),
    (b"uid", b"4294967295"),
    (b"uid", b"4294967296"),
    (b"gid", b"70000"),
    (b"mtime", b"1600000000.123456789"),
    (b"mtime", b"-1.5"),
    (b"mtime", b"99999999999"),
    (b"atime", b"12.5"),
    (b"ctime", b"-0.5"),
    (b"SCHILY.devmajor", b"4095"),
    (b"SCHILY.devminor", b"1048575"),
    (b"SCHILY.xattr.user.a", b"value"),
    (b"SCHILY.xattr.user.a%3Db", b"\0\x01"),
    (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
    (b"SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    (b"SCHILY.xattr.trusted.", b"x"),
    (b"SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff"),
    (b"SCHILY.acl.access", b"user::rwx,user:7:r--,group::r-x,mask::r-x,other::r--"),
    (b"SCHILY.acl.default", b"user::rwx,group::r-x,other::r--"),
    (b"SCHILY.acl.access", b"u::rw-,u:lisa:r--:1000,g::r--,g:0:---,m:rwx,o::---"),
    (b"SCHILY.acl.access", b"user::rw-\nuser:9:r--\t#effective:r--\ngroup::r--\nmask::r--\nother::r--\n"),
    (b"SCHILY.acl.access", b"user:lisa:rwx"),
    (b"SCHILY.acl.default", b"default:user::rwx"),
    (b"LIBARCHIVE.xattr.user.b", b"dmFsdWU="),
    (b"LIBARCHIVE.xattr.user.a%3db", b"AAEC/w"),
    (b"LIBARCHIVE.xattr.user.a", b"b3RoZXI"),
    (b"LIBARCHIVE.xattr.user.%zz", b"Y*=="),
    (b"LIBARCHIVE.xattr.system.posix_acl_access", b"AgAAAAEABgD/////BAAEAP////8gAAQA/////w=="),
    (b"uid", b""),
    (b"mtime", b""),
    (b"uid", b"7"),
    (b"GNU.sparse.numblocks", b"1"),
    (b"RHT.security.selinux", b"system_u:object_r:bin_t:s0"),
    (b"GNU.sparse.major", b"1"),
    (b"GNU.sparse.minor", b"0"),
    (b"GNU.sparse.major", b"0"),
    (b"GNU.sparse.minor", b"1"),
    (b"GNU.sparse.name", b"sparse"),
    (b"GNU.sparse.realsize", b"100000"),
    (b"GNU.sparse.size", b"100000"),
    (b"GNU.sparse.numblocks", b"2"),
    (b"GNU.sparse.map", b"0,512,4096,512"),
    (b"GNU.sparse.map", b"1,3"),
    (b"GNU.sparse.offset", b"4096"),
    (b"GNU.sparse.numbytes", b"512"),
    (b"hdrcharset", b"BINARY"),
];

/// What lies between two headers: where each entry, or part of one, begins and ends.
fn parts(tar: &[u8]) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(block) = tar.get(at..at + 512) {
        if block.iter().all(|&b| b == 0) {
            break;
        }
        let size = block[124..136]
            .iter()
            .skip_while(|&&b| b == b' ')
            .take_while(|b| (b'0'..=b'7').contains(b))
            .fold(0, |n: usize, &b| {
                n.saturating_mul(8).saturating_add(usize::from(b - b'0'))
            });
        let has_data = !matches!(block[156], b'1'..=b'6');
        let data = if has_data { size } else { 0 };
        let end = at
            .saturating_add(512)
            .saturating_add(data)
            .checked_next_multiple_of(512)
            .unwrap_or(usize::MAX)
            .min(tar.len());
        parts.push(at..end);
        at = end;
    }
    parts
}

pub(crate) fn mend(tar: &mut [u8]) {
    for part in parts(tar) {
        seal(&mut tar[part][..512]);
    }
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn set(field: &mut [u8], value: &[u8]) {
    field.fill(0);
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value[..len]);
}

fn header(flag: u8, name: &[u8], data: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = vec![0; 512];
    set(&mut out[..100], name);
    set(&mut out[100..108], b"0000644");
    set(&mut out[108..116], b"0000000");
    set(&mut out[116..124], b"0000000");
    set(
        &mut out[124..136],
        format!("{:011o}", data.len()).as_bytes(),
    );
    set(&mut out[136..148], b"13727410000");
    out[156] = flag;
    let link = *rng.pick(NAMES);
    if matches!(flag, b'1' | b'2') {
        set(&mut out[157..257], link);
    }
    let magic = *rng.pick(MAGICS);
    out[257..265].copy_from_slice(magic);
    seal(&mut out);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len += 1;
    }
    [format!("{len} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

fn records(rng: &mut Rng) -> Vec<u8> {
    let picked = (0..=rng.below(4)).map(|_| {
        let &(key, value) = rng.pick(RECORDS);
        record(key, value)
    });
    picked.collect::<Vec<_>>().concat()
}

/// A sparse file of PAX version 0.0 or 0.1.
fn sparse(rng: &mut Rng) -> Vec<u8> {
    let pairs: Vec<usize> = (0..=rng.below(5))
        .flat_map(|place| {
            [
                place * 4096 + rng.below(3) * 512,
                *rng.pick(&[0, 1, 512, 2000]),
            ]
        })
        .collect();
    let number = |key: &str, n: usize| {
        let key = format!("GNU.sparse.{key}");
        record(key.as_bytes(), n.to_string().as_bytes())
    };
    let mut body = number("size", 40_000);
    body.extend(number("numblocks", pairs.len() / 2));
    if rng.one_in(2) {
        for pair in pairs.chunks(2) {
            body.extend(number("offset", pair[0]));
            body.extend(number("numbytes", pair[1]));
        }
    } else {
        let map: Vec<String> = pairs.iter().map(ToString::to_string).collect();
        body.extend(record(b"GNU.sparse.map", map.join(",").as_bytes()));
        let name = *rng.pick(NAMES);
        body.extend(record(b"GNU.sparse.name", name));
    }
    let stored: usize = pairs.iter().skip(1).step_by(2).sum();
    let mut out = header(b'x', b"pax", &body, rng);
    let name = *rng.pick(NAMES);
    out.extend(header(b'0', name, &vec![b's'; stored], rng));
    out
}

fn fresh(rng: &mut Rng) -> Vec<u8> {
    if rng.one_in(8) {
        return sparse(rng);
    }
    let flag = *rng.pick(FLAGS);
    let name = *rng.pick(NAMES);
    let data = match flag {
        b'x' | b'g' => records(rng),
        b'L' | b'K' => [*rng.pick(NAMES), b"\0"].concat(),
        b'0' | b'7' => vec![b'd'; rng.below(3000)],
        _ => Vec::new(),
    };
    header(flag, name, &data, rng)
}

pub(crate) fn mutate(input: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    if input.is_empty() {
        input.push(1);
    }
    if rng.one_in(20) {
        input[0] ^= 1 << rng.below(2);
    }
    let mut tar = input.split_off(1);
    let max = max.saturating_sub(1);
    for _ in 0..=rng.below(3) {
        once(&mut tar, max, rng, plain);
    }
    if !rng.one_in(10) {
        mend(&mut tar);
    }
    if tar.len() <= max {
        input.append(&mut tar);
    }
}

fn once(tar: &mut Vec<u8>, max: usize, rng: &mut Rng, plain: &mut Mutate<'_>) {
    let parts = parts(tar);
    let insert = |tar: &mut Vec<u8>, bytes: &[u8], rng: &mut Rng| {
        let starts: Vec<usize> = parts.iter().map(|p| p.start).collect();
        let end = parts.last().map_or(0, |p| p.end);
        let at = if starts.is_empty() || rng.one_in(4) {
            end
        } else {
            *rng.pick(&starts)
        };
        tar.splice(at..at, bytes.iter().copied());
    };
    if parts.is_empty() || rng.one_in(12) {
        let bytes = fresh(rng);
        if parts.is_empty() && !rng.one_in(2) {
            return plain(tar, max);
        }
        return insert(tar, &bytes, rng);
    }
    let part = rng.pick(&parts).clone();
    let other = rng.pick(&parts).clone();
    match rng.below(14) {
        0 => {
            let copy = tar[part].to_vec();
            insert(tar, &copy, rng);
        }
        1 => {
            tar.drain(part);
        }
        2 => {
            let bytes = fresh(rng);
            insert(tar, &bytes, rng);
        }
        3 => {
            let body = records(rng);
            let flag = *rng.pick(b"xxxg");
            let bytes = header(flag, b"pax", &body, rng);
            tar.splice(part.start..part.start, bytes);
        }
        4 => tar[part.start + 156] = *rng.pick(FLAGS),
        5 => {
            let name = if rng.one_in(2) {
                tar[other.start..][..100].to_vec()
            } else {
                rng.pick(NAMES).to_vec()
            };
            let field = if rng.one_in(2) { 0..100 } else { 157..257 };
            set(&mut tar[part][field], &name);
        }
        6 => {
            // Below another entry, or a whiteout of it.
            let mut name = tar[other.start..][..100].to_vec();
            name.retain(|&b| b != 0);
            let addition: &[u8] = if rng.one_in(2) { b"/b" } else { b"/.wh.b" };
            name.extend_from_slice(addition);
            set(&mut tar[part][..100], &name);
        }
        7 | 8 => {
            let field = rng.pick(FIELDS).clone();
            let value = *rng.pick(NUMBERS);
            set(&mut tar[part][field], value);
        }
        9 => {
            let magic = *rng.pick(MAGICS);
            tar[part][257..265].copy_from_slice(magic);
        }
        10 => {
            let zeros = *rng.pick(&[1, 511, 512, 1024, 10240]);
            if rng.one_in(3) {
                tar.truncate(tar.len().saturating_sub(rng.below(zeros + 1)));
            } else {
                tar.resize(tar.len() + zeros, 0);
            }
        }
        11 => {
            // Only a header's or a body's bytes.
            let mut bytes = tar[part.clone()].to_vec();
            let len = bytes.len();
            plain(&mut bytes, len);
            tar.splice(part, bytes);
        }
        _ => plain(tar, max),
    }
}
