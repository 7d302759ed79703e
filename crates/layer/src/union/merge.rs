//! Looking names up in merged directories, and listing them.

use lcow_blockio::ReadAt;
use lcow_ext4::FileType;
use lcow_ext4::reader::Inode;

use super::Union;
use super::overlay::{is_whiteout_device, may_be_xwhiteout};
use crate::tree::{Entry, FileIdentity, LayerIndex, Node, Place, Spot, TreeError};

/// A name as one layer has it.
struct Found {
    name: Vec<u8>,
    /// How far down the merged directory, 0 for the nearest.
    depth: usize,
    at: FileIdentity,
    file_type: FileType,
}

impl<R: ReadAt> Union<R> {
    /// `ovl_lookup` (fs/overlayfs/namei.c).
    pub(super) fn lookup_merged(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>, TreeError> {
        let mut found: Option<Node> = None;
        for spot in dir.spots() {
            let fs = self.fs(spot.layer);
            let number = fs.lookup(&spot.inode, name);
            let Some(number) = number.map_err(TreeError::on(spot.layer))? else {
                continue;
            };
            let inode = fs.inode(number).map_err(TreeError::on(spot.layer))?;
            let spot = Spot {
                layer: spot.layer,
                inode,
            };
            if self.is_whiteout(&spot)? {
                break;
            }
            if spot.inode.file_type != FileType::Directory {
                return Ok(found.or_else(|| Some(Node::alone(spot.layer, spot.inode))));
            }
            let opaque = self.checked_marks(&spot)?.opaque;
            match &mut found {
                None => found = Some(Node::alone(spot.layer, spot.inode)),
                Some(node) => node.below.push(spot),
            }
            if opaque {
                break;
            }
        }
        Ok(found)
    }

    fn is_whiteout(&self, spot: &Spot) -> Result<bool, TreeError> {
        Ok(is_whiteout_device(&spot.inode)
            || may_be_xwhiteout(&spot.inode) && self.marks(spot)?.whiteout)
    }

    /// `ovl_dir_read_merged` (fs/overlayfs/readdir.c).
    pub(super) fn read_merged(&self, dir: &Node) -> Result<Vec<Entry>, TreeError> {
        let mut all = Vec::new();
        // Which of the merged directories announce whiteouts in attribute form.
        let mut xwhiteouts = Vec::new();
        for (depth, spot) in dir.spots().enumerate() {
            xwhiteouts.push(self.marks(spot)?.xwhiteouts);
            self.list(spot, depth, &mut all)?;
        }
        all.sort_unstable_by(|a, b| (&a.name, a.depth).cmp(&(&b.name, b.depth)));
        let mut entries = Vec::with_capacity(if xwhiteouts.len() == 1 { all.len() } else { 0 });
        let mut all = all.into_iter().peekable();
        while let Some(first) = all.next() {
            let mut group = vec![];
            while let Some(same) = all.next_if(|next| next.name == first.name) {
                group.push(same);
            }
            entries.extend(self.merge(first, &group, &xwhiteouts)?);
        }
        Ok(entries)
    }

    fn list(&self, spot: &Spot, depth: usize, into: &mut Vec<Found>) -> Result<(), TreeError> {
        let fs = self.fs(spot.layer);
        let listed = fs.read_dir(&spot.inode);
        for entry in listed.map_err(TreeError::on(spot.layer))? {
            let at = FileIdentity {
                layer: spot.layer,
                inode: entry.inode,
            };
            let file_type = match entry.file_type {
                Some(file_type) => file_type,
                None => self.inode(at)?.file_type,
            };
            into.push(Found {
                name: entry.name,
                depth,
                at,
                file_type,
            });
        }
        Ok(())
    }

    fn inode(&self, at: FileIdentity) -> Result<Inode, TreeError> {
        let inode = self.fs(at.layer).inode(at.inode);
        inode.map_err(TreeError::on(at.layer))
    }

    /// What one name is, from how the layers have it, nearest first.
    fn merge(
        &self,
        first: Found,
        farther: &[Found],
        xwhiteouts: &[bool],
    ) -> Result<Option<Entry>, TreeError> {
        if self.hides(&first, xwhiteouts)? {
            return Ok(None);
        }
        let mut place = Place::One(first.at);
        // Whether the nearest directory is opaque matters only if there is something to hide.
        if first.file_type == FileType::Directory && !farther.is_empty() {
            let mut parts = vec![first.at];
            let mut last = first.at;
            for next in farther {
                if next.file_type != FileType::Directory || self.is_opaque(last)? {
                    break;
                }
                parts.push(next.at);
                last = next.at;
            }
            if parts.len() > 1 {
                place = Place::Merged(parts.into());
            }
        }
        Ok(Some(Entry {
            name: first.name,
            file_type: first.file_type,
            place,
        }))
    }

    fn is_opaque(&self, at: FileIdentity) -> Result<bool, TreeError> {
        let inode = self.inode(at)?;
        let layer: LayerIndex = at.layer;
        Ok(self.marks(&Spot { layer, inode })?.opaque)
    }

    fn hides(&self, found: &Found, xwhiteouts: &[bool]) -> Result<bool, TreeError> {
        let announced = xwhiteouts.get(found.depth).copied().unwrap_or(false);
        let suspect = match found.file_type {
            FileType::CharDevice => true,
            FileType::Regular => announced,
            _ => false,
        };
        if !suspect {
            return Ok(false);
        }
        let inode = self.inode(found.at)?;
        let layer = found.at.layer;
        self.is_whiteout(&Spot { layer, inode })
    }
}
