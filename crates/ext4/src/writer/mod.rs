//! placeholder docs
#![allow(missing_docs, unused_variables, clippy::todo)]
mod error;
mod options;
use crate::{FileType, InodeNumber, Xattr};
pub use error::{WriteError, WriteErrorKind};
use lcow_blockio::WriteAt;
pub use options::{Content, Identity, Metadata, Summary, WriterOptions};
use std::io;

pub struct Writer<D: WriteAt> {
    disk: D,
}
impl<D: WriteAt> Writer<D> {
    pub fn new(disk: D, options: &WriterOptions) -> Result<Self, WriteError> {
        todo!()
    }
    pub fn lookup(&self, dir: InodeNumber, name: &[u8]) -> Option<InodeNumber> {
        todo!()
    }
    pub fn file_type(&self, inode: InodeNumber) -> Option<FileType> {
        todo!()
    }
    pub fn metadata(&self, inode: InodeNumber) -> Option<Metadata> {
        todo!()
    }
    pub fn links(&self, inode: InodeNumber) -> Option<u32> {
        todo!()
    }
    pub fn size(&self, inode: InodeNumber) -> Option<u64> {
        todo!()
    }
    pub fn parent(&self, dir: InodeNumber) -> Option<InodeNumber> {
        todo!()
    }
    pub fn children(&self, dir: InodeNumber) -> impl Iterator<Item = (Vec<u8>, InodeNumber)> + '_ {
        std::iter::empty()
    }
    pub fn xattrs(&self, inode: InodeNumber) -> Result<Vec<Xattr>, WriteError> {
        todo!()
    }
    pub fn create(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
        content: Content<'_>,
        metadata: &Metadata,
    ) -> Result<InodeNumber, WriteError> {
        todo!()
    }
    pub fn link(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
        target: InodeNumber,
    ) -> Result<(), WriteError> {
        todo!()
    }
    pub fn unlink(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
    ) -> Result<Vec<InodeNumber>, WriteError> {
        todo!()
    }
    pub fn set_metadata(
        &mut self,
        inode: InodeNumber,
        metadata: &Metadata,
    ) -> Result<(), WriteError> {
        todo!()
    }
    pub fn set_xattrs(&mut self, inode: InodeNumber, xattrs: &[Xattr]) -> Result<(), WriteError> {
        todo!()
    }
    pub fn begin_data(&mut self, inode: InodeNumber) -> Result<(), WriteError> {
        todo!()
    }
    pub fn write_data(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        todo!()
    }
    pub fn skip_data(&mut self, len: u64) -> Result<(), WriteError> {
        todo!()
    }
    pub fn end_data(&mut self) -> Result<(), WriteError> {
        todo!()
    }
    pub fn read_back(&self, inode: InodeNumber, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        todo!()
    }
    pub fn finish(self, identity: &Identity) -> Result<Summary, WriteError> {
        todo!()
    }
}
