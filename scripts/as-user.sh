#!/usr/bin/env bash
# Runs a command as an ordinary user: no name in /etc/passwd needed, no groups, no capabilities, a home of its own that is
# removed afterwards. Root only.
#
#   scripts/as-user.sh COMMAND [ARG…]
set -euo pipefail
uid=61234
home=$(mktemp -d)
chown $uid:$uid "$home"
trap 'rm -rf --one-file-system "$home"' EXIT
env -i HOME="$home" TMPDIR="$home" PATH="$PATH" LC_ALL=C.UTF-8 ${LCOW_SKIPS:+LCOW_SKIPS="$LCOW_SKIPS"} \
  setpriv --reuid=$uid --regid=$uid --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
