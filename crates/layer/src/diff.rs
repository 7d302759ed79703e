//! What differs between two unions, as an image layer's tar.
//!
//! Applied on top of `before`, whether as one more layer of a union or by unpacking, the tar gives `after`.
//!
//! # What it holds
//! * An entry for each added or modified path, with all its metadata, in the form of [`canonical`](crate::export::canonical()): sorted, of a file
//!   with several names the first as the file and the others as links.
//! * `.wh.NAME` for each deleted path, in the place that NAME has in the order.
//! * `.wh..wh..opq` behind a directory that was deleted and made anew, if everything in it is written anyway; it then stands for all
//!   deletions in it. Which is to say: `after` must have it as an opaque directory, and a name that it has kept unchanged means that the others are
//!   deleted one by one instead.
//! * An entry for each directory that leads to any of these, the root (`./`) included: in a union the nearest layer's directory gives the metadata, so
//!   a layer without such an entry would change it.
//! * No attributes of overlayfs's own. A nested overlay's, which the union shows as `trusted.overlay.*`, are kept as
//!   `trusted.overlay.overlay.*`, as overlayfs keeps them on disk.
//!
//! The tar of two equal trees has no entry. A root that differs in nothing but its times is no difference.

use std::io::Write;

use lcow_blockio::ReadAt;

use crate::changes::{Items, State};
use crate::export::{Emitter, ExportError, ExportOptions, ExportSummary};
use crate::union::Union;

pub use crate::changes::diff_size;

/// Writes the changes from `before` to `after` (see [`changes`](crate::changes::changes)) as a layer's tar. Later times than `source_date_epoch`
/// (seconds since 1970), if given, become it.
///
/// # Errors
/// As for [`canonical`](crate::export::canonical()); `out` then holds a part of the tar.
pub fn diff<R: ReadAt>(
    after: &Union<R>,
    before: Option<&Union<R>>,
    source_date_epoch: Option<i64>,
    out: impl Write,
) -> Result<ExportSummary, ExportError> {
    let items: Items = crate::changes::compare(after, before)?;
    let options = ExportOptions {
        overlay_whiteouts: true,
        source_date_epoch,
    };
    let mut emitter = Emitter::new(after, &options, out);
    for (index, item) in items.used() {
        let path = items.path(index);
        match (&item.place, item.state) {
            (None, _) | (_, State::Deleted) => {
                if !item.covered {
                    emitter.whiteout(&path)?;
                }
            }
            (Some(place), _) => {
                let node = after
                    .open_place(place)
                    .map_err(|source| ExportError::Tree {
                        path: (&*path).into(),
                        source,
                    })?;
                emitter.file(&path, &node)?;
                if item.opaque && !item.covered {
                    emitter.opaque(&path)?;
                }
            }
        }
    }
    emitter.finish()
}
