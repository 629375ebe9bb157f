#!/usr/bin/env bash
# Points the NBD clients that people use at a running server and checks what they see.
#
#   nbd-clients.sh SOCKET EXPORT
#
# The export must be writable and at least 64 MiB; ITS CONTENT IS OVERWRITTEN. Prints one claim a
# line: "ok - ...", "skip - ..." or "not ok - ..."; fails if any claim does.
# Needs nbdinfo, nbdcopy (libnbd-bin), qemu-img, qemu-io (qemu-utils); uses nbdsh and fio if there.
set -u

if [ $# -ne 2 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
socket=$1 export=$2
uri="nbd+unix:///$export?socket=$socket"
failures=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# claim TEXT COMMAND...: runs the command, which must succeed.
claim() {
  local text=$1
  shift
  if "$@" >"$scratch/out" 2>&1; then
    echo "ok - $text"
  else
    echo "not ok - $text"
    sed 's/^/#   /' "$scratch/out"
    failures=$((failures + 1))
  fi
}

has() { command -v "$1" >/dev/null 2>&1; }
io() { qemu-io -f raw "$@" "$uri" >"$scratch/io" 2>&1 && ! grep -qi 'fail\|error' "$scratch/io"; }
says() { nbdinfo "$uri" | grep -q "$1"; }

size=$(nbdinfo --size "$uri") || { echo "not ok - nbdinfo connects"; exit 1; }

info_lists_export() { nbdinfo --list "nbd+unix:///?socket=$socket" | grep -q 'export='; }

claim "nbdinfo lists the exports" info_lists_export
for ability in can_multi_conn can_flush can_fua can_trim can_zero can_fast_zero can_df can_cache; do
  claim "the server announces $ability" says "$ability: true"
done
claim "the server prefers 4 KiB blocks" says "block_size_preferred: 4096"
claim "qemu-img info understands the export" qemu-img info "$uri"

unaligned() {
  io -c 'write -P 7 1000 5000' -c 'read -P 7 1000 5000' -c 'write -P 9 4095 2' \
    -c 'read -P 7 1000 3095' -c 'read -P 9 4095 2' -c 'read -P 7 4097 1903' -c flush
}
zeroes() {
  io -c 'write -P 5 1M 1M' -c 'write -z 1M 64k' -c 'read -P 0 1M 64k' \
    -c 'write -z -u 1200k 100k' -c 'read -P 0 1200k 100k' -c 'read -P 5 1300k 100k' \
    -c 'discard 1536k 64k' -c 'read -P 0 1536k 64k' -c 'write -z 1999000 111' \
    -c 'read -P 0 1999000 111' -c 'read -P 5 1999111 1000'
}
fua() { io -c 'write -f -P 3 2M 4k' -c 'read -P 3 2M 4k'; }
largest() { io -c 'write -P 6 4M 32M' -c 'read -P 6 4M 32M'; }
claim "unaligned writes read back" unaligned
claim "zeroed and discarded ranges read as zeros, and only those" zeroes
claim "a FUA write reads back" fua
claim "a request of 32 MiB goes through" largest

# A sparse file with data at both ends and scattered between.
data=$scratch/data
truncate -s "$size" "$data"
for at in 0 1 7 8 15; do
  dd if=/dev/urandom of="$data" bs=1M seek=$at count=1 conv=notrunc status=none
done
dd if=/dev/urandom of="$data" bs=4096 seek=$((size / 4096 - 3)) count=3 conv=notrunc status=none

copy_in_out() {
  nbdcopy "$data" "$uri" && nbdcopy "$uri" "$scratch/back" && cmp "$data" "$scratch/back"
}
claim "nbdcopy brings a sparse file in and out again" copy_in_out
claim "nbdcopy with 4 connections and 64 requests in flight" \
  sh -c "nbdcopy --connections=4 --requests=64 '$data' '$uri' && nbdcopy --connections=4 \
    --requests=64 '$uri' '$scratch/back' && cmp '$data' '$scratch/back'"
claim "nbdinfo --map shows holes" sh -c "nbdinfo --map '$uri' | grep -q hole"
claim "qemu-img map agrees that there are holes" \
  sh -c "qemu-img map -f raw --output=json '$uri' | grep -q '\"data\": false'"
claim "qemu-img compare finds the export equal to the file" \
  qemu-img compare -f raw -F raw "$data" "$uri"
convert_out() {
  qemu-img convert -f raw -O qcow2 "$uri" "$scratch/out.qcow2" &&
    qemu-img compare -f qcow2 -F raw "$scratch/out.qcow2" "$uri"
}
convert_in() {
  io -c "discard 0 64M"
  qemu-img convert -n -f qcow2 -O raw "$scratch/out.qcow2" "$uri" &&
    qemu-img compare -f raw -F raw "$data" "$uri"
}
claim "qemu-img converts the export to qcow2" convert_out
claim "qemu-img converts qcow2 onto the export" convert_in

# nbdsh belongs to the system's Python, whatever other one comes first in PATH.
shell() { PATH=/usr/bin:$PATH nbdsh "$@"; }
if shell -c pass 2>/dev/null; then
  errors() {
    shell -u "$uri" -c - <<'PY'
import errno
def refused(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (call, error)
    else:
        raise AssertionError(call)
h.set_strict_mode(0)
size = h.get_size()
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.ENOSPC, h.pwrite, b"x" * 8192, size - 4096)
refused(errno.EINVAL, h.pread, 512, 0, 1 << 9)
refused(errno.EINVAL, h.flush, 1 << 8)
h.pwrite(b"still here", 0)
assert h.pread(10, 0) == b"still here"
PY
  }
  multi() {
    shell -c "
a = nbd.NBD(); a.connect_uri('$uri')
b = nbd.NBD(); b.connect_uri('$uri')
a.pwrite(b'A' * 4096, 8192)
b.flush()
assert b.pread(4096, 8192) == b'A' * 4096
"
  }
  claim "bad requests are refused with the right error and the connection lives on" errors
  claim "a second connection flushes and reads what the first wrote" multi
else
  echo "skip - nbdsh is not here"
fi

if has fio && fio --enghelp 2>/dev/null | grep -qw nbd; then
  verify() {
    (cd "$scratch" && fio --name=v --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=512-64k \
      --bs_unaligned=0 --size=48m --iodepth=32 --verify=crc32c --do_verify=1 --verify_fatal=1)
  }
  claim "fio writes 48 MiB at random with 32 requests in flight and verifies them" verify
else
  echo "skip - fio has no nbd engine here"
fi

claim "the server still answers after all this" nbdinfo "$uri"
[ "$failures" -eq 0 ]
