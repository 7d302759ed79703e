//! What the tests share: images in temporary files, short ways to fill them.

use std::fs::File;
use std::path::{Path, PathBuf};

use lcow_blockio::FileDisk;
use lcow_ext4::writer::{Content, Identity, Metadata, Summary, Writer, WriterOptions};
use lcow_ext4::{InodeNumber, Timestamp};
use tempfile::TempDir;

pub(crate) const ROOT: InodeNumber = InodeNumber::ROOT;

pub(crate) const IDENTITY: Identity = Identity {
    uuid: *b"\x12\x34\x56\x78\x9a\xbc\x4d\xef\x80\x01\x02\x03\x04\x05\x06\x07",
    hash_seed: [7; 16],
};

/// An image file that goes with the test.
pub(crate) struct Image {
    _dir: TempDir,
    path: PathBuf,
}

impl Image {
    pub(crate) fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    pub(crate) fn within(dir: &Path) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let path = dir.path().join("disk");
        Self { _dir: dir, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn disk(&self) -> FileDisk {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .unwrap();
        FileDisk::from(file)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// Bytes that the file really takes.
    pub(crate) fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&self.path).unwrap().blocks() * 512
    }
}

/// Writes an image and has e2fsck and the verifier look at it.
pub(crate) fn image(fill: impl FnOnce(&mut Writer<FileDisk>)) -> (Image, Summary) {
    let image = Image::new();
    let mut writer = Writer::new(image.disk(), &WriterOptions::default()).unwrap();
    fill(&mut writer);
    let summary = writer.finish(&IDENTITY).unwrap();
    clean(image.path());
    (image, summary)
}

/// Neither e2fsck nor the verifier has anything to say about an image.
pub(crate) fn clean(image: &Path) {
    lcow_testkit::e2fsck(image);
    verified(image);
}

/// The verifier has nothing to say about an image.
pub(crate) fn verified(image: &Path) {
    let disk = FileDisk::open(image).unwrap();
    let report = lcow_ext4::check::check(disk, &lcow_ext4::check::CheckOptions::default()).unwrap();
    assert!(report.is_clean() && report.complete, "{report:?}");
}

pub(crate) fn meta(permissions: u16) -> Metadata {
    let time = Timestamp {
        secs: 1_700_000_000,
        nanos: 123_456_789,
    };
    Metadata {
        permissions,
        uid: 0,
        gid: 0,
        atime: time,
        mtime: time,
        ctime: time,
    }
}

pub(crate) fn dir(writer: &mut Writer<FileDisk>, parent: InodeNumber, name: &str) -> InodeNumber {
    writer
        .create(parent, name.as_bytes(), Content::Directory, &meta(0o755))
        .unwrap()
}

pub(crate) fn file(
    writer: &mut Writer<FileDisk>,
    parent: InodeNumber,
    name: &str,
    data: &[u8],
) -> InodeNumber {
    let inode = writer
        .create(parent, name.as_bytes(), Content::Regular, &meta(0o644))
        .unwrap();
    writer.begin_data(inode).unwrap();
    writer.write_data(data).unwrap();
    writer.end_data().unwrap();
    inode
}

/// Bytes that no two blocks have alike.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
