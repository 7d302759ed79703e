//! The same calls through a VM and through the userspace reader.

use crate::support::{config, need_qemu, sh, userland};
use lcow_driver::{
    ApplyRequest, Cancel, GraphDriver, Input, Isolation, LayerId, OpenOptions, SandboxOptions,
    Store,
};
use lcow_layer::export::ExportOptions;
use lcow_testkit::{Tree, differences, read_tar};
use lcow_uvm::{ExitStatus, ProcessSpec, UtilityVms};
use std::io::Read;

fn id(text: &str) -> LayerId {
    text.parse().unwrap()
}

/// A tar in the making: entries with everything that a header can say.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(&mut self, kind: tar::EntryType, path: &[u8], mode: u32, target: &[u8], data: &[u8]) {
        use std::os::unix::ffi::OsStrExt;
        let os = |bytes| std::path::Path::new(std::ffi::OsStr::from_bytes(bytes)).to_owned();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000 + u64::from(mode & 7));
        header.set_gid(2000);
        header.set_mtime(1_600_000_000 + path.len() as u64);
        header.set_size(data.len() as u64);
        if kind.is_character_special() || kind.is_block_special() {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        if target.is_empty() {
            self.0.append_data(&mut header, os(path), data).unwrap();
        } else {
            self.0
                .append_link(&mut header, os(path), os(target))
                .unwrap();
        }
    }

    fn file(&mut self, path: &[u8], data: &[u8]) {
        self.add(tar::EntryType::Regular, path, 0o644, b"", data);
    }

    fn dir(&mut self, path: &[u8]) {
        self.add(tar::EntryType::Directory, path, 0o755, b"", b"");
    }

    fn link(&mut self, path: &[u8], target: &[u8]) {
        self.add(tar::EntryType::Symlink, path, 0o777, target, b"");
    }

    fn place(self, store: &Store, name: &str, parent: Option<&str>) {
        let tar = self.0.into_inner().unwrap();
        let parent = parent.map(id);
        let request = ApplyRequest::default();
        let input = Input::Reader(&mut tar.as_slice());
        let cancel = Cancel::new();
        store
            .import(&id(name), parent.as_ref(), input, &request, &cancel)
            .unwrap();
    }
}

/// Three layers and a sandbox: whiteouts, opaque directories, files in the place of directories and the other way round, odd
/// names, every type.
fn store(dir: &std::path::Path) -> Store {
    let open = OpenOptions {
        isolation: Isolation::InProcess,
        ..OpenOptions::default()
    };
    let store = Store::open(&dir.join("store"), open).unwrap();
    let tree = dir.join("tree");
    userland(
        &tree,
        &[
            "dash", "cat", "find", "stat", "tar", "readlink", "rm", "mkdir", "ln",
        ],
    );
    let mut programs = Layer::new();
    programs.0.append_dir_all("", &tree).unwrap();
    programs.place(&store, "programs", None);

    let mut base = Layer::new();
    base.dir(b"t/");
    for dir in [
        "t/d",
        "t/opaque",
        "t/opaque/sub",
        "t/dir-then-file",
        "t/deep",
        "t/deep/er",
        "t/merged",
    ] {
        base.dir(format!("{dir}/").as_bytes());
        base.file(format!("{dir}/a").as_bytes(), dir.as_bytes());
        base.file(format!("{dir}/gone").as_bytes(), b"x");
    }
    base.file(b"t/file-then-dir", b"file");
    base.file(
        b"t/large",
        &(0..300_000_u32)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<_>>(),
    );
    base.file(b"t/empty", b"");
    for name in [
        &b"t/new\nline"[..],
        b"t/back\\slash",
        b"t/-dash",
        b"t/ space ",
        "t/\u{e9}\u{1f41f}".as_bytes(),
        b"t/\xff\xfe",
        b"t/*",
    ] {
        base.file(name, name);
    }
    base.file(&[b"t/", &[b'n'; 255][..]].concat(), b"long");
    base.add(tar::EntryType::Regular, b"t/setuid", 0o6755, b"", b"s");
    base.add(tar::EntryType::Directory, b"t/sticky/", 0o1777, b"", b"");
    base.add(tar::EntryType::Link, b"t/hard", 0o644, b"t/large", b"");
    base.add(tar::EntryType::Char, b"t/null", 0o666, b"", b"");
    base.add(tar::EntryType::Fifo, b"t/fifo", 0o600, b"", b"");
    for (name, target) in [
        ("absolute", "/t/d/a"),
        ("relative", "d/../d/a"),
        ("up", "../../../t/d/a"),
        ("dangling", "nowhere"),
        ("loop", "loop"),
        ("to-dir", "merged"),
        ("through", "to-dir/a"),
        ("to-gone", "d/gone"),
    ] {
        base.link(format!("t/{name}").as_bytes(), target.as_bytes());
    }
    base.place(&store, "base", Some("programs"));

    let mut middle = Layer::new();
    middle.file(b"t/d/.wh.gone", b"");
    middle.file(b"t/opaque/.wh..wh..opq", b"");
    middle.file(b"t/opaque/only", b"o");
    middle.file(b"t/.wh.dir-then-file", b"");
    middle.file(b"t/dir-then-file", b"now a file");
    middle.dir(b"t/file-then-dir/");
    middle.file(b"t/file-then-dir/inside", b"i");
    middle.file(b"t/merged/b", b"b");
    middle.add(tar::EntryType::Directory, b"t/deep/er/", 0o700, b"", b"");
    middle.place(&store, "middle", Some("base"));

    let size = SandboxOptions {
        size: Some(32 << 20),
        ..SandboxOptions::default()
    };
    store
        .create_read_write(&id("box"), Some(&id("middle")), &size)
        .unwrap();
    store
}

#[test]
fn spec_read_only_access_gives_what_the_same_call_through_a_vm_gives() {
    need_qemu!();
    let dir = tempfile::tempdir().unwrap();
    let driver = GraphDriver::new(store(dir.path()), UtilityVms::new(config(dir.path())));
    let handle = driver.get(&id("box"), None).unwrap();
    let mounted = handle.mounted().unwrap();
    let (machine, root) = (mounted.machine(), mounted.root());
    // The container changes things too: another opaque directory, and whiteouts as overlayfs makes them.
    let script = "cd /t && rm -r merged && mkdir merged && echo c > merged/c && rm d/a && echo x >> empty \
                  && ln hard hard2 && ln -s c merged/link && rm -r deep/er";
    assert_eq!(
        sh(machine, root, script),
        (String::new(), ExitStatus::Code(0))
    );

    // archive and read.
    let archive = "cd /t && find . -mindepth 1 -printf '%P\\0' \
                   | tar --format=posix --null --no-recursion --xattrs -cf - -T -";
    let mut process = machine
        .exec(&ProcessSpec::new(Some(root), ["/bin/dash", "-c", archive]))
        .unwrap();
    let mut tar = Vec::new();
    process
        .take_stdout()
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    assert_eq!(process.wait().unwrap(), ExitStatus::Code(0));
    let tree = |tar: &[u8]| -> Tree {
        read_tar(tar, &|_| true)
            .unwrap()
            .into_iter()
            .map(|(path, entry)| (path.strip_prefix(b"./").unwrap_or(&path).to_owned(), entry))
            .collect()
    };
    let in_vm = tree(&tar);

    // stat, lstat, readlink, readdir; what is not there is not there for both.
    let paths = [
        "d/a",
        "d/gone",
        "empty",
        "large",
        "absolute",
        "relative",
        "up",
        "dangling",
        "loop",
        "to-dir",
        "through",
        "to-gone",
        "merged",
        "merged/link",
        "merged/a",
        "merged/b",
        "opaque/sub",
        "opaque/a",
        "opaque/only",
        "dir-then-file",
        "dir-then-file/a",
        "file-then-dir/inside",
        "deep/er",
        "setuid",
        "sticky",
        "null",
        "fifo",
        "large/x",
        "to-dir/c",
        "d/../hard2",
        "nothing",
    ];
    let mut asked = String::from("cd /t; ");
    for path in paths {
        asked.push_str(&format!(
            "echo \"$(stat -L -c '%f %u %g %h %Y' {path} 2>&-)|$(stat -c '%f %u %g %h %Y' {path} 2>&-)|$(readlink {path})\"; "
        ));
    }
    let (answers, status) = sh(machine, root, &asked);
    assert_eq!(status, ExitStatus::Code(0));
    let (listed, _) = sh(
        machine,
        root,
        "cd /t; for d in . opaque merged d deep; do find $d -mindepth 1 -maxdepth 1 -printf '%y'; echo; done",
    );
    driver.put(handle).unwrap();

    let chain = driver.store().open_chain(&id("box")).unwrap();
    let mut ours = Vec::new();
    let options = ExportOptions {
        overlay_whiteouts: false,
        source_date_epoch: None,
    };
    chain.archive(b"/t", &options, &mut ours).unwrap();
    let ours = tree(&ours);
    let wrong = differences(&ours, &in_vm);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(ours.len() > 35, "{}", ours.len());

    let show = |stat: Result<lcow_layer::tree::Stat, _>| {
        stat.map_or(String::new(), |s| {
            format!(
                "{:x} {} {} {} {}",
                s.mode(),
                s.uid,
                s.gid,
                s.links,
                s.mtime.secs
            )
        })
    };
    let answers: Vec<_> = answers.lines().collect();
    assert_eq!(answers.len(), paths.len(), "{answers:#?}");
    for (path, answer) in paths.iter().zip(answers) {
        let full = format!("t/{path}");
        let target = chain.readlink(full.as_bytes()).unwrap_or_default();
        let mine = format!(
            "{}|{}|{}",
            show(chain.stat(full.as_bytes())),
            show(chain.lstat(full.as_bytes())),
            String::from_utf8(target).unwrap(),
        );
        assert_eq!(mine, answer, "{path}");
    }
    let letters = |dir: &str| {
        let mut letters: Vec<u8> = chain
            .readdir(format!("t/{dir}").as_bytes())
            .unwrap()
            .iter()
            .map(|entry| match entry.file_type {
                lcow_ext4::FileType::Directory => b'd',
                lcow_ext4::FileType::Symlink => b'l',
                lcow_ext4::FileType::CharDevice => b'c',
                lcow_ext4::FileType::Fifo => b'p',
                _ => b'f',
            })
            .collect();
        letters.sort_unstable();
        letters
    };
    for (dir, listed) in [".", "opaque", "merged", "d", "deep"]
        .iter()
        .zip(listed.lines())
    {
        let mut listed = listed.as_bytes().to_vec();
        listed.sort_unstable();
        assert_eq!(letters(dir), listed, "{dir}");
    }

    // read, in pieces and from the middle.
    let mut file = chain.open(b"t/hard2").unwrap();
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 1_200_000);
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(-4)).unwrap();
    let mut last = [0; 4];
    file.read_exact(&mut last).unwrap();
    assert_eq!(u32::from_le_bytes(last), 299_999);
    for nothing in [&b"t"[..], b"t/nothing", b"t/loop", b"t/null"] {
        let error = chain.open(nothing).unwrap_err();
        assert_eq!(error.kind(), lcow_driver::ErrorKind::NotFound, "{error}");
    }
}
