#!/usr/bin/env bash
# Bad input: marcot answers with one clear sentence and the exit status that rbd gives. Nothing is done by
# half, and no stored data is lost.
#
# usage: bad-input.sh --marcot BINARY
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$HERE/../lib/packages.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"
# shellcheck source=scripts/lib/commands.sh
. "$HERE/../lib/commands.sh"

# refusal STATUS WORDS ARGUMENT... : marcot with the arguments fails with the status and says the words.
refusal() {
    local want=$1 words=$2
    shift 2
    claim "$*: $words ($want)" refuses "$want" "*$words*" marcot "$@"
}

unharmed() {
    claim "$1: the image has its content" test "$(content image)" = "$SUM"
    claim "$1: nothing was added" test "$(marcot ls -l | sha256sum)" = "$LISTED"
    claim "$1: check finds the pool in order" marcot check rbd --no-progress
}

command_line() {
    refusal 2 "error opening pool 'nopool': (2)" ls nopool
    refusal 2 "error opening pool 'nopool'" info nopool/image
    refusal 2 "error opening image nothing: (2)" info nothing
    refusal 2 "error opening image nothing: (2)" snap create nothing@s
    refusal 2 "error setting snapshot context: (2)" info image@nothing
    refusal 2 "clone error: (2)" clone image@nothing child
    refusal 2 "namespace 'nowhere' does not exist" info rbd/nowhere/image
    refusal 2 "failed to remove snapshot: (2)" snap rm image@nothing
    refusal 2 "delete error: (2)" rm nothing
    refusal 2 "rename error: (2)" rename nothing other
    refusal 17 "create error: (17) File exists" create image --size 1G
    refusal 17 "failed to create snapshot: (17)" snap create image@s
    refusal 17 "clone error: (17)" clone --rbd-default-clone-format 2 image@s image
    refusal 17 "copy failed: (17)" cp image@s image
    refusal 17 "error creating pool 'rbd': (17)" pool create rbd
    refusal 17 "rename error: (17)" rename image image
    refusal 17 "export error: (17)" export image "$CLAIMS_SCRATCH/raw"
    refusal 17 "import failed: (17)" import "$CLAIMS_SCRATCH/raw" image
    refusal 1 "'--size' is invalid" create new --size -1
    refusal 1 "'--size' is invalid" create new --size 1.5G
    refusal 1 "'--size' is invalid" create new --size abc
    refusal 1 "'--size' is invalid" create new --size 99999999999999999999
    refusal 22 "256 TiB" create new --size 300T
    refusal 22 "must specify --size" create new
    refusal 22 "256 TiB" resize image --size 300T
    refusal 22 "shrinking an image is only allowed" resize image --size 1M
    refusal 22 "invalid spec" create new@snap@x --size 1G
    refusal 22 "invalid spec" create a/b/c/d --size 1G
    refusal 22 "snapshot name specified" create new@snap --size 1G
    refusal 22 "image name was not specified" info
    refusal 22 "must be protected" clone image@s child
    refusal 22 "already unprotected" snap unprotect image@s
    refusal 22 "no parent" flatten image
    refusal 39 "has snapshots" rm image
    refusal 2 "import failed: (2)" import "$CLAIMS_SCRATCH/nothing" new
    refusal 21 "cannot import a directory" import "$CLAIMS_SCRATCH" new
    refusal 16 "still holds image" pool rm rbd
    refusal 1 "unrecognised option '--bogus'" info --bogus image
    claim "a name too long is refused" refuses 36 "*longer than 230 bytes*" \
        marcot create "$(printf 'x%.0s' $(seq 300))" --size 1M
    refusal 22 "is not UTF-8" create $'image\xff' --size 1M
    claim "an unknown command is refused" refuses 1 "*unknown option 'bogus'*" marcot bogus
    refusal 1 "did you mean 'marcot snap create'?" snap creat image@s2
    refusal 25 "perf image iotop needs a terminal" perf image iotop
    refusal 22 "'1' is no id of an image" gc --take-back 1
    refusal 2 "pool 'rbd' has no image with the id 0123456789abcdef" gc --take-back 0123456789abcdef
    refusal 17 "rbd/image is finished: 'rm' removes it" gc --take-back "$(marcot info image --format json | sed 's/.*"id":"\([0-9a-f]*\)".*/\1/')"
    refusal 22 "pool name was not specified" tail ls
    refusal 2 "error opening pool 'nopool': (2)" tail ls nopool
    refusal 22 "tail id was not specified" tail rm rbd
    refusal 22 "tail id was not specified" tail export rbd
    refusal 2 "nothing named '1.2' was put aside for pool 'rbd'" tail rm rbd 1.2
    refusal 2 "nothing named '../image' was put aside for pool 'rbd'" tail export rbd ../image "$CLAIMS_SCRATCH/tail.diff"
    claim "an export of nothing leaves no file" test ! -e "$CLAIMS_SCRATCH/tail.diff"
    refusal 22 "must not begin with '.marcot-partial.'" rename image .marcot-partial.old
    refusal 22 "must not begin with '.marcot-partial.'" create .marcot-partial.new --size 1M
    claim "a name with an escape sequence is printed escaped" refuses 2 '*\u{1b}[2J*' \
        marcot info $'\e[2J'
    unharmed "after wrong command lines"
}

# damaged FILE WHAT STATUS WORDS COMMAND... : runs the command while FILE is damaged.
damaged() {
    local file=$1 what=$2 status=$3 words=$4
    shift 4
    cp -p "$file" "$CLAIMS_SCRATCH/good"
    case $what in
    truncated) truncate -s 20 "$file" ;;
    empty) truncate -s 0 "$file" ;;
    flipped) flip "$file" 40 ;;
    newer) printf '\x09' | dd of="$file" bs=1 seek=8 conv=notrunc status=none ;;
    esac
    claim "$what $(basename "$file"): $words ($status)" refuses "$status" "*$words*" "$@"
    cp -p "$CLAIMS_SCRATCH/good" "$file"
}

flip() {
    local byte
    byte=$(dd if="$1" bs=1 skip="$2" count=1 status=none | od -An -tu1)
    printf "\\x$(printf '%02x' $((byte ^ 255)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

damaged_pool() {
    local pool=$MARCOT_STORE/pools/rbd head name data
    head=$(echo "$pool"/images/*/head)
    name=$pool/names/@/image
    data=$(find "$pool/segments" -name 'd*' -size +1M | head -n 1)
    local file
    for file in "$pool/pool" "$head" "$name" "$MARCOT_STORE/store"; do
        damaged "$file" truncated 5 "cut short" marcot info image
        damaged "$file" empty 5 "cut short" marcot info image
        damaged "$file" newer 95 "newer marcot" marcot info image
    done
    damaged "$pool/pool" flipped 5 "checksum" marcot info image
    damaged "$head" flipped 5 "checksum" marcot info image
    cp -p "$data" "$CLAIMS_SCRATCH/segment"
    flip "$data" 400000
    claim "a damaged block is an error, not wrong data" refuses 5 "*checksum*" \
        marcot export --no-progress image "$CLAIMS_SCRATCH/damaged.raw"
    claim "a failed export leaves no file" test ! -e "$CLAIMS_SCRATCH/damaged.raw"
    claim "check fails when data is lost" refuses 5 "*" marcot check rbd --no-progress
    claim "check says which bytes are lost" grep -q "bytes .* are damaged" "$CLAIMS_SCRATCH/out"
    cp -p "$CLAIMS_SCRATCH/segment" "$data"
    mv "$data" "$CLAIMS_SCRATCH/moved"
    claim "a missing segment is named" refuses 5 "*is missing*" \
        marcot export --no-progress image "$CLAIMS_SCRATCH/damaged.raw"
    mv "$CLAIMS_SCRATCH/moved" "$data"
    unharmed "after damage was mended"
}

full_disk() {
    local small=$CLAIMS_SCRATCH/small
    mkdir "$small"
    mount -t tmpfs -o size=24m tmpfs "$small"
    export MARCOT_STORE=$small/store
    marcot import --no-progress "$CLAIMS_SCRATCH/raw-8m" image
    claim "full disk: an import ends with ENOSPC" refuses 28 "*No space left*" \
        marcot import --no-progress "$CLAIMS_SCRATCH/raw" big
    claim "full disk: a failed import leaves no image" refuses 2 "*error opening image*" marcot info big
    # The image has 8 MiB of data, and the pool reserves 4 MiB.
    claim "full disk: a failed import leaves no data" test "$(du -sm "$small" | cut -f1)" -lt 16
    serve_here
    head -c 40M /dev/urandom >"$small/filler" 2>/dev/null || true
    claim "full disk: a served image answers writes with ENOSPC" writes_fail
    claim "full disk: a served image can still be read" qemu-io -r -f raw -c 'read 0 1M' "$(uri "$SOCKET" rbd/image)"
    rm "$small/filler"
    claim "full disk: a served image can be written when there is room again" qemu-io -f raw -c 'write -P 1 7M 64k' -c flush "$(uri "$SOCKET" rbd/image)"
    claim "the server ends in good order" stop_serving "$SERVER"
    claim "full disk: check finds the pool in order" marcot check rbd --no-progress
    export MARCOT_STORE=$CLAIMS_SCRATCH/store
    umount "$small"
}

writes_fail() {
    qemu-io -f raw -c 'write 0 8M' -c 'write 0 8M' -c 'write 0 8M' "$(uri "$SOCKET" rbd/image)" >"$CLAIMS_SCRATCH/out" 2>&1 || true
    grep -q "No space left" "$CLAIMS_SCRATCH/out" || { cat "$CLAIMS_SCRATCH/out" && return 1; }
}

read_only_directory() {
    mount --bind "$MARCOT_STORE" "$MARCOT_STORE"
    mount -o remount,bind,ro "$MARCOT_STORE"
    claim "read-only: reading works" test "$(content image)" = "$SUM"
    refusal 30 "ead-only" create new --size 1M
    refusal 30 "ead-only" snap create image@new
    refusal 30 "ead-only" rm image
    refusal 30 "ead-only" resize image --size 1G
    umount "$MARCOT_STORE"
    unharmed "after a read-only directory"
}

serve_here() {
    serve "$SOCKET" --idle-time-s 1 "$@"
}

servers() {
    local port long
    serve_here --tcp 127.0.0.1:0
    port=$(sed -n 's/^listening on 127\.0\.0\.1://p' "$CLAIMS_SCRATCH/server.out")
    claim "a port in use is refused" refuses 98 "*give another port*" \
        marcot serve --socket "$CLAIMS_SCRATCH/other" --tcp "127.0.0.1:$port"
    claim "a socket in use is refused" refuses 98 "*another server answers*" marcot serve --socket "$SOCKET"
    long=$CLAIMS_SCRATCH/$(printf 'x%.0s' $(seq 120))
    claim "a socket path too long is refused" refuses 22 "*is * bytes long*" marcot serve --socket "$long"
    claim "clients that send garbage, break off or ask too much harm nobody" python3 - "$SOCKET" <<'PY'
import os, socket, struct, sys

def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(sys.argv[1])
    return s

def exact(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise EOFError
        data += more
    return data

def go(s, name=b"rbd/image"):
    exact(s, 18)
    s.sendall(struct.pack(">I", 3))
    s.sendall(b"IHAVEOPT" + struct.pack(">II", 7, 6 + len(name)) + struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
    while True:
        _, _, kind, length = struct.unpack(">QIII", exact(s, 20))
        exact(s, length)
        if kind == 1:
            return s
        assert kind < 1 << 31, hex(kind)

def request(kind, offset, length, flags=0, handle=1):
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, handle, offset, length)

def reply(s):
    magic, error, handle = struct.unpack(">IIQ", exact(s, 16))
    assert magic == 0x67446698
    return error

for _ in range(50):
    s = connect()
    s.sendall(os.urandom(500))
    s.close()
for _ in range(20):
    s = go(connect())
    s.sendall(os.urandom(1000))
    s.close()
s = go(connect())
s.sendall(request(1, 0, 65536) + b"x" * 1000)
s.close()
s = go(connect())
size = 32 << 20
s.sendall(request(0, size, 4096))
assert reply(s) == 22
s.sendall(request(1, size - 1024, 4096) + b"y" * 4096)
assert reply(s) in (22, 28)
s.sendall(request(99, 0, 0))
assert reply(s) == 22
s.sendall(request(0, 0, 0xFFFFFFFF))
assert reply(s) in (22, 75)
s.sendall(request(0, 0, 512))
assert reply(s) == 0
exact(s, 512)
PY
    claim "the server still serves after that" qemu-io -r -f raw -c 'read 0 1M' "$(uri "$SOCKET" rbd/image)"
    kill -9 "$SERVER"
    wait "$SERVER" 2>/dev/null || true
    disown_ended "$SERVER"
    claim "a socket left by a dead server is taken over" serve_here
    claim "the new server serves on that socket" qemu-io -r -f raw -c 'read 0 1M' "$(uri "$SOCKET" rbd/image)"
    claim "the server ends in good order" stop_serving "$SERVER"
    unharmed "after bad clients"
}

main() {
    need_packages qemu-utils
    commands_begin "$@"
    SOCKET=$CLAIMS_SCRATCH/sock
    export MARCOT_LOG=error
    head -c 32M /dev/urandom >"$CLAIMS_SCRATCH/raw"
    head -c 8M "$CLAIMS_SCRATCH/raw" >"$CLAIMS_SCRATCH/raw-8m"
    marcot import --no-progress "$CLAIMS_SCRATCH/raw" image
    marcot snap create --no-progress image@s
    SUM=$(sha256sum <"$CLAIMS_SCRATCH/raw")
    LISTED=$(marcot ls -l | sha256sum)
    command_line
    damaged_pool
    full_disk
    read_only_directory
    servers
    claims_end
}

main "$@"
