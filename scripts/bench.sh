#!/usr/bin/env bash
# Prepares inputs and peers under .bench/ (once; root), then prints the conversion tables.
#
#   scripts/bench.sh            ROUNDS=5 by default
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh bench
mkdir -p .bench

# The mirror is the one that this machine's own apt uses.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | awk '$2 == "Debian" { print $1; exit }')
root_only() { [ "$(id -u)" -eq 0 ] || { echo "bench: making $1 needs root, once" >&2; exit 1; }; }

# mke2fs reads tars from 1.47.1 on, which Debian 12 has in its backports.
if [ ! -x .bench/e2fsprogs/sbin/mke2fs ]; then
  echo "bench: fetching e2fsprogs from bookworm-backports"
  apt=$(mktemp -d)
  mkdir -p "$apt/lists/partial"
  echo "deb $mirror bookworm-backports main" >"$apt/sources"
  options=(-qq -o Dir::Etc::SourceList="$apt/sources" -o Dir::Etc::SourceParts=/nonexistent -o Dir::State::Lists="$apt/lists"
           -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" download e2fsprogs libext2fs2 libcom-err2 libss2)
  for deb in "$apt"/*.deb; do dpkg -x "$deb" .bench/e2fsprogs; done
  rm -r "$apt"
fi
cat >.bench/mke2fs <<SH
#!/bin/sh
LD_LIBRARY_PATH=$PWD/.bench/e2fsprogs/usr/lib/x86_64-linux-gnu:$PWD/.bench/e2fsprogs/lib/x86_64-linux-gnu exec $PWD/.bench/e2fsprogs/sbin/mke2fs "\$@"
SH
chmod +x .bench/mke2fs

input() { # NAME [PACKAGES]
  [ -e ".bench/$1.tar" ] && return
  root_only ".bench/$1.tar"
  echo "bench: making $1.tar from Debian packages"
  echo "deb $mirror bookworm main" |
    mmdebstrap --quiet --variant=minbase ${2:+--include="$2"} bookworm .bench/part.tar -
  mv .bench/part.tar ".bench/$1.tar"
}
input minbase
input development build-essential,clang,llvm-dev,libboost-all-dev,default-jdk-headless,python3-dev,cmake,git

cargo build --release --locked --quiet --package lcow
cargo build --release --locked --quiet --package lcow-benches
target/release/lcow-benches mkfs --rounds "${ROUNDS:-5}" --lcow target/release/lcow --mke2fs mke2fs
exec target/release/lcow-benches convert --rounds "${ROUNDS:-5}" --lcow target/release/lcow --mke2fs .bench/mke2fs \
  .bench/minbase.tar .bench/development.tar
