#!/usr/bin/env bash
# Makes the images that the fuzz targets patch, with mke2fs, debugfs, e2fsck and qemu-img, into fuzz/bases. They are kept in the
# repository, since other versions of those tools make other bytes: run this only to add one.
#
#   fuzz/make-bases.sh [NAME…]
set -euo pipefail
cd "$(dirname "$0")/bases"
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export E2FSPROGS_FAKE_TIME=1600000000 MKE2FS_DEVICE_SECTSIZE=512

# A tree with one of everything that fits.
tree=$work/tree
mkdir -p "$tree/dir/deeper" "$tree/names"
for i in $(seq 40); do : >"$tree/names/a-name-that-takes-some-room-in-its-directory-block-$i"; done
seq 60 >"$tree/small"
seq 4000 >"$tree/big"
: >"$tree/empty"
echo in the directory >"$tree/dir/file"
ln "$tree/small" "$tree/dir/hard"
ln -s short "$tree/soft"
ln -s "$(printf 'long/%.0s' $(seq 30))" "$tree/dir/long"
mkfifo "$tree/dir/fifo"
mknod "$tree/dir/char" c 1 3
mknod "$tree/dir/block" b 259 70000
mknod "$tree/dir/whiteout" c 0 0
# Every second block of a file: too many extents for an inode.
for i in 1 3 5 7 9 11 13 15 17; do printf 'piece %d' $i | dd of="$tree/holes" bs=1024 seek=$i conv=notrunc status=none; done
truncate -s 40000 "$tree/holes"
setfattr -n user.small -v value "$tree/small"
setfattr -n user.block -v "$(printf 'x%.0s' $(seq 300))" "$tree/big"
setfattr -n user.other -v "$(printf 'y%.0s' $(seq 200))" "$tree/big"
setfattr -n trusted.overlay.opaque -v y "$tree/dir"
setfattr -n security.capability -v 0x0100000200000000000000000000000000000000 "$tree/dir/file"
setfacl -m u:7:r,g:8:x "$tree/dir/file"
chmod 4755 "$tree/dir/file"
chown 70000:80000 "$tree/big"
find "$tree" -depth -exec touch -h -d @1600000000.123456789 {} +
large=$work/large
cp -a "$tree" "$large"
setfattr -n user.large -v "$(printf 'z%.0s' $(seq 2500))" "$large/empty"

# image NAME KiB TREE MKE2FS-OPTION…: what is not written holds a pattern, so that stale bytes would show.
image() {
  local name=$1 kib=$2 from=$3; shift 3
  [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $name "* ]] || return 0
  yes 'stale bytes' | tr '\n' '!' | head -c $((kib * 1024)) >"$work/image" || true
  mke2fs -q -F -t ext4 -b 1024 -N 96 -m 0 -U 01234567-89ab-4def-8123-456789abcdef \
    -E "nodiscard,lazy_itable_init=0,hash_seed=00112233-4455-4677-8899-aabbccddeeff" "$@" ${from:+-d "$from"} "$work/image" "$kib"
  if [ -n "$from" ]; then
    # Unwritten blocks inside and behind a file; an index for the directory.
    debugfs -w -R "fallocate small 2 9" "$work/image" >/dev/null 2>&1 || true
    e2fsck -fyD "$work/image" >/dev/null || [ $? -le 1 ]
  fi
  e2fsck -fn "$work/image" >/dev/null
  zstd -q -19 -f "$work/image" -o "$name.zst"
}
only=("$@")

plain='^has_journal,^resize_inode'
image ext4 512 "$tree" -O "$plain,metadata_csum,64bit"
image ext4-nocsum 512 "$tree" -O "$plain,^metadata_csum,^64bit,uninit_bg"
image ext4-nothing 512 "$tree" -O "$plain,^metadata_csum,^64bit,^uninit_bg,^flex_bg,^dir_index,^extra_isize" -I 128
image ext2 512 "$tree" -O "$plain,^metadata_csum,^64bit,^uninit_bg,^flex_bg,^extents,^huge_file,^dir_nlink"
image ext2-csum 512 "$tree" -O "$plain,metadata_csum,^extents,^64bit"
image inline 512 "$tree" -O "$plain,metadata_csum,inline_data,64bit"
image ea_inode 512 "$large" -O "$plain,metadata_csum,ea_inode,64bit,metadata_csum_seed"
image bigalloc 1024 "$tree" -O "$plain,metadata_csum,bigalloc" -C 4096
image meta_bg 1024 "$tree" -O "$plain,metadata_csum,meta_bg,64bit,^flex_bg" -g 256 -N 128
image groups 1024 "$tree" -O "$plain,uninit_bg,^metadata_csum,flex_bg" -g 256 -N 128 -G 2
image sparse2 1024 "$tree" -O "$plain,metadata_csum,sparse_super2,large_dir" -g 256 -N 128
image blocks4k 1024 "$tree" -O "$plain,metadata_csum,64bit" -b 4096
image journal 3072 "$tree" -O "^resize_inode,has_journal,metadata_csum,64bit" -J size=1
image journal-32 3072 "$tree" -O "^resize_inode,has_journal,^metadata_csum,^64bit" -J size=1
image journal-ext3 3072 "$tree" -O "^resize_inode,has_journal,^metadata_csum,^64bit,^extents,^flex_bg,^uninit_bg" -J size=1
image resize 1024 "$tree" -O "^has_journal,resize_inode,metadata_csum" -E resize=8192
image quota 1024 "$tree" -O "$plain,metadata_csum,quota,project" -I 256
image casefold 512 "" -O "$plain,metadata_csum,casefold"
image orphans 3072 "$tree" -O "^resize_inode,has_journal,metadata_csum,orphan_file" -J size=1

# A dynamic VHD of two blocks, of which one has a place.
if [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" dynamic-vhd "* ]]; then
  qemu-img create -q -f vpc -o subformat=dynamic "$work/disk.vhd" 3M
  qemu-io -f vpc -c 'write -P 0xa5 2M 4k' -c 'write -P 0x5a 2200k 1k' "$work/disk.vhd" >/dev/null
  zstd -q -19 -f "$work/disk.vhd" -o dynamic-vhd.zst
fi
ls -l
