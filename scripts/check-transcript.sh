#!/usr/bin/env bash
# Holds a demo's transcript to what it must have shown.
set -euo pipefail
file=${1:?usage: scripts/check-transcript.sh TRANSCRIPT}
while IFS= read -r line; do
  grep -qF -- "$line" "$file" || { echo "demo's transcript lacks: $line" >&2; exit 1; }
done <<'LINES'
$ lcow load
$ lcow images
$ lcow layer tree
layer 1: Debian GNU/Linux 12
layer 2: works
layer 3: Welcome to the third layer.
whiteouts: honoured
opaque directory: honoured
Linux 6.
D /etc/debian_version
C /etc/issue
A /srv/hello.txt
the 3 original layers have the same diff IDs in the saved archive
the committed layer holds exactly what was changed, and the directories on the way: 15 entries
the host's mount table is what it was
no process is left over
LINES
[ "$(grep -cE '^  \([0-9]+\.[0-9]{3} s\)$' "$file")" -ge 7 ] || { echo "demo's transcript lacks times" >&2; exit 1; }
