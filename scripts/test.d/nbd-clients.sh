#!/usr/bin/env bash
# Runs common NBD clients against a server, and checks their results.
#
# usage: nbd-clients.sh --marcot BINARY     serves a fresh image, a clone and a snapshot by itself
#        nbd-clients.sh URI                 an export of at least 64 MiB; ITS CONTENT IS OVERWRITTEN
#
# URI is nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT.
#
# shellcheck disable=SC2317,SC2329 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$HERE/../lib/packages.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

# quiet COMMAND... : shows the command's output only if it fails.
quiet() {
  "$@" >"$scratch/out" 2>&1 && return 0
  sed 's/^/#   /' "$scratch/out"
  return 1
}

# check TEXT COMMAND... : a claim about the export that $where names.
check() {
  local text=$1
  shift
  claim "$where: $text" quiet "$@"
}

io() {
  qemu-io -f raw "$@" "$uri" >"$scratch/io" 2>&1 && ! grep -i 'fail\|error' "$scratch/io"
}
says() { nbdinfo "$uri" | grep -q "$1"; }


# clients : all claims about the export at $uri, which $where names.
clients() {
  size=$(nbdinfo --size "$uri")

  info_lists_export() { nbdinfo --list "$uri" | grep -q 'export='; }

  check "nbdinfo lists the exports" info_lists_export
  for ability in can_multi_conn can_flush can_fua can_trim can_zero can_fast_zero can_df can_cache; do
    check "the server announces $ability" says "$ability: true"
  done
  check "the server prefers 4 KiB blocks" says "block_size_preferred: 4096"
  check "qemu-img info understands the export" qemu-img info "$uri"

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
  check "unaligned writes read back" unaligned
  check "zeroed and discarded ranges read as zeros, and only those" zeroes
  check "a FUA write reads back" fua
  check "a request of 32 MiB goes through" largest

  # A sparse file with data at both ends and scattered in between.
  data=$scratch/data
  truncate -s "$size" "$data"
  for at in 0 1 7 8 15; do
    dd if=/dev/urandom of="$data" bs=1M seek=$at count=1 conv=notrunc status=none
  done
  dd if=/dev/urandom of="$data" bs=4096 seek=$((size / 4096 - 3)) count=3 conv=notrunc status=none

  copy_in_out() {
    nbdcopy "$data" "$uri" && nbdcopy "$uri" "$scratch/back" && cmp "$data" "$scratch/back"
  }
  check "nbdcopy brings a sparse file in and out again" copy_in_out
  check "nbdcopy with 4 connections and 64 requests in flight" \
    sh -c "nbdcopy --connections=4 --requests=64 '$data' '$uri' && nbdcopy --connections=4 \
      --requests=64 '$uri' '$scratch/back' && cmp '$data' '$scratch/back'"
  check "nbdinfo --map shows holes" sh -c "nbdinfo --map '$uri' | grep -q hole"
  check "qemu-img map agrees that there are holes" \
    sh -c "qemu-img map -f raw --output=json '$uri' | grep -q '\"data\": false'"
  check "qemu-img compare finds the export equal to the file" \
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
  check "qemu-img converts the export to qcow2" convert_out
  check "qemu-img converts qcow2 onto the export" convert_in

  # nbdsh needs the system's Python, but another Python may come first in PATH.
  shell() { PATH=/usr/bin:$PATH nbdsh "$@"; }
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
  check "bad requests are refused with the right error and the connection lives on" errors
    check "a second connection flushes and reads what the first wrote" multi

    verify() {
      (cd "$scratch" && fio --name=v --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=512-64k \
        --bs_unaligned=0 --size=48m --iodepth=32 --verify=crc32c --do_verify=1 --verify_fatal=1)
    }
    check "fio writes 48 MiB at random with 32 requests in flight and verifies them" verify

  check "the server still answers after all this" nbdinfo "$uri"
}

# A read-only export: reads work, writes are refused.
reads_only() {
  ! qemu-io -f raw -c 'write 0 4k' "$uri" >"$scratch/io" 2>&1 && qemu-io -r -f raw -c 'read 0 1M' "$uri"
}

# serves MARCOT : starts a server on a unix socket and a free TCP port; sets $server and $port.
serves() {
  local tenths=0
  start_owned "$1" serve --socket "$scratch/sock" --tcp 127.0.0.1:0 >"$scratch/listening"
  server=$!
  until grep -qF "listening on $scratch/sock" "$scratch/listening"; do
    if ((tenths++ >= 600)) || ! kill -0 "$server" 2>/dev/null; then echo "the server did not start" && exit 1; fi
    sleep 0.1
  done
  port=$(sed -n 's/^listening on 127\.0\.0\.1://p' "$scratch/listening")
}

marcot_test() {
  local marcot=$1 port server
  export MARCOT_STORE=$scratch/store MARCOT_LOG=warn
  "$marcot" create fresh --size 96M
  "$marcot" create template --size 96M
  "$marcot" bench template --io-type write --io-size 64K --io-total 32M >/dev/null
  "$marcot" snap create --no-progress template@s
  "$marcot" snap protect template@s
  "$marcot" clone template@s child
  serves "$marcot"
  local image
  for image in fresh child; do
    where="$image, unix socket" uri="nbd+unix:///rbd/$image?socket=$scratch/sock"
    clients
  done
  where="snapshot, unix socket" uri="nbd+unix:///rbd/template@s?socket=$scratch/sock"
  check "reads work, writes are refused" reads_only
  check "nbdinfo says that it is read-only" says "is_read_only: true"
  where="TCP" uri="nbd://127.0.0.1:$port/rbd/fresh"
  clients
  kill -TERM "$server"
  wait "$server" || claim "the server ends in good order" false
  disown_ended "$server"
  where="afterwards"
  check "the pool is in order" "$marcot" check rbd --no-progress
}

main() {
  need_packages libnbd-bin python3-libnbd qemu-utils fio
  claims_begin
  scratch=$CLAIMS_SCRATCH
  case "$#:${1-}" in
  2:--marcot) marcot_test "$2" ;;
  1:nbd*) where=client uri=$1 && clients ;;
  *)
    sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
  esac
  claims_end
}

main "$@"
