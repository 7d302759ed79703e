//! Images in and out of a store. Conversions run in the test's own process.

mod archive;
mod load;
mod power;
mod records;
mod support;
