#!/usr/bin/env bash
# Type-checks the crates that make and read disks for Windows: they use nothing that only Unix has. Nothing is run.
#
# Needs Debian's rustc-web with rust-web-src (so that the standard library is checked from source: no toolchain but Debian's
# packages) and the MinGW C compiler for the codecs' C code. Installs them as root; says `skipped: why` where it can't have them.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "skipped: check-windows: $*"; exit 0; }

compiler=/usr/bin/rustc
sources=/usr/lib/rustlib/src/rust/library/std
if [ ! -x "$compiler" ] || [ ! -d "$sources" ] || ! command -v x86_64-w64-mingw32-gcc >/dev/null; then
  command -v apt-get >/dev/null || skip "no apt-get, and no rustc-web, rust-web-src or gcc-mingw-w64-x86-64-win32"
  [ "$(id -u)" -eq 0 ] || skip "packages are missing; once, as root: scripts/setup.sh windows"
  scripts/setup.sh windows || skip "the packages can't be installed"
fi
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$("$compiler" --version | cut -d' ' -f2)
printf '%s\n' "$wanted" "$found" | sort -VC || skip "Debian's rustc is $found, and $wanted is needed"

# Unoptimised: the workspace's own profile would spend minutes on code that never runs.
export RUSTC=$compiler RUSTC_BOOTSTRAP=1 RUSTFLAGS="-D warnings" CARGO_TARGET_DIR=target/windows
cargo check --locked --quiet -Zbuild-std=std,panic_unwind --target x86_64-pc-windows-gnu \
  --config 'profile.dev.package."*".opt-level=0' --config profile.dev.opt-level=0 --config profile.dev.debug=false \
  -p lcow-blockio -p lcow-ext4 -p lcow-disk -p lcow-layer
echo "blockio, ext4, disk and layer type-check for Windows (rustc $found)"
