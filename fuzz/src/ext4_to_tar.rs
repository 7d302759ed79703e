//! ext4 → tar, of images that were tampered with. Input: see [`image`](crate::image).
//!
//! A typed error that is not an I/O error; or a tar that, applied and exported again, is the same tar; files hold what
//! their blocks hold, zeros elsewhere, and no block of the file system's own. What the verifier finds nothing in, the reader
//! reads. Memory and time are bounded.

use std::sync::Arc;

use lcow_blockio::{MemDisk, ReadAt, SubRange};
use lcow_ext4::check::{CheckOptions, check as verify};
use lcow_ext4::reader::{Filesystem, Journal, ReadErrorKind};
use lcow_layer::ErrorKind;
use lcow_layer::apply::{ApplyError, ApplyOptions, Refusal, apply};
use lcow_layer::export::{ExportError, ExportOptions, canonical};
use lcow_layer::tree::Subtree;

use crate::bytes::Bytes;
use crate::image::{MEND, OVERLAY, make};
use crate::limits::{Capped, bounded};
use crate::tree::{Kind, Node};
use crate::{fix, naive, tree};

/// Tar and data that are looked at, in bytes.
const DATA: usize = 24 << 20;

/// What the reader may take for an image of `len` bytes (`docs/status.md`); what is written besides is the target's own.
fn memory(len: usize) -> usize {
    (64 << 20) + 4 * len
}

/// `None`: more than the target looks at.
fn export<R: ReadAt>(
    fs: Arc<Filesystem<R>>,
    overlay: bool,
) -> Result<Option<Vec<u8>>, ExportError> {
    let options = ExportOptions {
        overlay_whiteouts: overlay,
        ..ExportOptions::default()
    };
    let mut out = Capped::new(DATA);
    let tree = Subtree::open(fs, b"")?;
    match canonical(&tree, &options, &mut out) {
        Ok(_) => Ok(Some(out.bytes)),
        Err(e) if e.output_error().is_some() => Ok(None),
        Err(e) => Err(e),
    }
}

pub(crate) fn run(input: &[u8]) {
    let (flags, mut image) = make(input);
    if flags & MEND != 0 {
        fix::mend(&mut image);
    }
    check(&image, flags & OVERLAY != 0);
}

/// Holds an image against all that the target promises.
pub(crate) fn check(image: &[u8], overlay: bool) {
    let memory = memory(image.len());
    let disk = Bytes(image);
    let report = bounded("checking", memory, || {
        verify(disk, &CheckOptions::default())
    });
    let is_clean = match report {
        Ok(report) => report.is_clean() && report.complete,
        Err(error) => {
            let kind = error.kind();
            assert!(kind == ReadErrorKind::Unsupported, "checking: {error:?}");
            false
        }
    };
    let fs = match bounded("opening", memory, || Filesystem::open(disk)) {
        Ok(fs) => Arc::new(fs),
        Err(error) => {
            let typed = matches!(
                error.kind(),
                ReadErrorKind::Corrupt | ReadErrorKind::Unsupported
            );
            assert!(typed, "opening: {error:?}");
            assert!(!is_clean, "it checks clean, and then {error:?}");
            return;
        }
    };
    let first = bounded("exporting", memory + 2 * DATA, || {
        export(Arc::clone(&fs), overlay)
    });
    let first = match first {
        Ok(Some(tar)) => tar,
        Ok(None) => return,
        Err(error) => {
            assert!(error.kind() != ErrorKind::Io, "exporting: {error:?}");
            let is_corrupt = error.kind() == ErrorKind::Corrupt;
            assert!(
                !(is_clean && is_corrupt),
                "it checks clean, and then {error:?}"
            );
            return;
        }
    };
    let tree = match bounded("reading", memory + 2 * DATA, || tree::read(&fs, DATA)) {
        Ok(tree) => tree,
        Err(error) => {
            let typed = matches!(
                error.kind(),
                ReadErrorKind::Corrupt | ReadErrorKind::Unsupported
            );
            assert!(typed, "reading: {error:?}");
            None
        }
    };
    if let Some(tree) = &tree
        && !matches!(fs.info().journal, Journal::Replayed { .. })
    {
        naive::check_contents(image, fs.info(), tree);
    }
    let Some(second) = round(&first, overlay) else {
        return;
    };
    if second == first {
        return;
    }
    if tree.is_none_or(|tree| tree.values().any(has_impossible_attributes)) {
        // Those are left out when the tar is applied; from then on nothing may change.
        let third = round(&second, overlay);
        assert!(
            third.is_none_or(|third| third == second),
            "the second export is no fixed point"
        );
        return;
    }
    panic!(
        "the export is no fixed point: {}",
        difference(&first, &second)
    );
}

/// Applies a tar of ours and exports the disk. `None`: a limit.
fn round(tar: &[u8], overlay: bool) -> Option<Vec<u8>> {
    let options = ApplyOptions {
        overlay,
        ..ApplyOptions::default()
    };
    let disk = MemDisk::new();
    let applied = match apply(tar, &disk, None, &options) {
        Ok(applied) => applied,
        Err(error) => {
            assert!(may_refuse(&error), "its own export: {error:?}");
            return None;
        }
    };
    let disk = SubRange::new(&disk, 0, applied.disk_size);
    let report = verify(&disk, &CheckOptions::default()).expect("a disk of ours can be checked");
    assert!(
        report.is_clean() && report.complete,
        "a disk of ours: {:?}",
        report.findings
    );
    let fs = Filesystem::open(&disk).expect("a disk of ours");
    export(Arc::new(fs), overlay).expect("a disk of ours exports")
}

/// Whether a file has attributes that Linux would not take on a file of its type.
fn has_impossible_attributes(node: &Node) -> bool {
    let directory = node.kind == Kind::Directory;
    let file = matches!(node.kind, Kind::File(..));
    let symlink = matches!(node.kind, Kind::Symlink(_));
    node.xattrs.keys().any(|name| match &name[..] {
        b"system.posix_acl_access" => symlink,
        b"system.posix_acl_default" => !directory,
        name if name.starts_with(b"user.") => !directory && !file,
        name => !name.starts_with(b"trusted.") && !name.starts_with(b"security."),
    })
}

/// The blocks in which two tars differ first, as text.
fn difference(first: &[u8], second: &[u8]) -> String {
    let differ = |pair: (&[u8], &[u8])| pair.0 != pair.1;
    let blocks = first.chunks(512).zip(second.chunks(512));
    let at = blocks.clone().position(differ).unwrap_or(0);
    let show = |tar: &[u8]| {
        let from = at.saturating_sub(3) * 512;
        let blocks = tar.get(from..).unwrap_or_default().chunks(512).take(5);
        let text = |block: &[u8]| {
            let text = block.escape_ascii().to_string().replace("\\x00", "~");
            text.replace("~~~~", "")
        };
        blocks.map(text).collect::<Vec<_>>().join("\n    ")
    };
    format!("block {at}\n    {}\nand\n    {}", show(first), show(second))
}

/// Limits of layers that other file systems do not have.
fn may_refuse(error: &ApplyError) -> bool {
    matches!(
        error,
        ApplyError::Refused {
            reason: Refusal::TooLarge(_) | Refusal::Disk(_),
            ..
        }
    )
}
