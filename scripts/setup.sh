#!/usr/bin/env bash
# Installs what a purpose needs and the machine lacks, from Debian's packages. Says nothing when there is nothing to do.
#
#   scripts/setup.sh build|demo|test|bench|windows
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:?usage: scripts/setup.sh build|demo|test|bench|windows}

# package=program-or-file that shows it is there
build=(gcc=gcc libc6-dev=/usr/include/stdio.h)
run=(qemu-system-x86=qemu-system-x86_64 linux-image-cloud-amd64=kernel)
demo=("${build[@]}" "${run[@]}" mmdebstrap=mmdebstrap zstd=zstd)
test=("${demo[@]}" e2fsprogs=e2fsck qemu-utils=qemu-img skopeo=skopeo attr=getfattr acl=getfacl strace=strace cryptsetup-bin=veritysetup
      busybox-static=busybox python3=python3 xz-utils=xz bzip2=bzip2 ncompress=compress mount=mount util-linux=setpriv
      libisal2=/usr/lib/x86_64-linux-gnu/libisal.so.2 libisal-dev=/usr/include/isa-l/igzip_lib.h)
bench=("${demo[@]}" libarchive13=/usr/lib/x86_64-linux-gnu/libarchive.so.13 isal=igzip libisal2=/usr/lib/x86_64-linux-gnu/libisal.so.2 openssl=openssl xz-utils=xz)
# 170 MB to download, 1 GB installed.
windows=("${build[@]}" rustc-web=/usr/bin/rustc rust-web-src=/usr/lib/rustlib/src/rust/library/std
         gcc-mingw-w64-x86-64-win32=x86_64-w64-mingw32-gcc)
case $purpose in
  build | demo | test | bench | windows) declare -n wanted=$purpose ;;
  *) echo "setup: no such purpose: $purpose (build, demo, test, bench or windows)" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin
present() {
  case $1 in
    /*) [ -e "$1" ] ;;
    kernel) for k in /boot/vmlinuz-*; do [ -e "$k" ] && [ -d "/lib/modules/${k#/boot/vmlinuz-}" ] && return; done; false ;;
    *) command -v "$1" >/dev/null ;;
  esac
}
missing=()
for entry in "${wanted[@]}"; do
  present "${entry#*=}" || missing+=("${entry%%=*}")
done

if ! command -v cargo >/dev/null; then
  echo "setup: cargo is not on PATH. Install Rust 1.95 or newer, then run this again." >&2
  exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "setup: these packages are missing: ${missing[*]}" >&2
  echo "setup: run once as root: make setup   (or: apt-get install ${missing[*]})" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "setup: no apt-get on this machine; install by hand what these Debian packages hold: ${missing[*]}" >&2
  exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "setup: apt-get failed; the whole log is in $log" >&2
  exit 1
fi
rm -f "$log"
