//! The sidecar `diff.split.zst`.
