//! Disks to tars: the very tar that a layer was made from ([`exact`]), or any tree in one fixed form ([`canonical`]).

mod canonical;
mod exact;

pub use canonical::*;
pub use exact::{ExactError, Expected, Exported, exact, unverified};
