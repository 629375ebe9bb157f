#!/usr/bin/env bash
# Every command, on an image that is in use: a client writes to it all the time.
#
# usage: in-use.sh --marcot BINARY
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

at() {
    uri "$SOCKET" "rbd/$1"
}

# start_writer IMAGE : starts a client that writes below 48 MiB until it gets SIGINT, and verifies its writes.
start_writer() {
    (cd "$CLAIMS_SCRATCH" && exec fio --name=w --ioengine=nbd --uri="$(at "$1")" --rw=randwrite \
        --bs=4k --iodepth=16 --size=48m --time_based --runtime=36000 --verify=crc32c --do_verify=0 \
        >"$CLAIMS_SCRATCH/fio" 2>&1) &
    WRITER=$!
    own "$WRITER"
}

# mark PATTERN : writes the pattern to 16 MiB from 64 MiB on. The client above does not write there.
mark() {
    io "$(at image)" "write -P $1 64M 16M"
}

shows() {
    io -r "$1" "read -P $2 64M 16M"
}

snapshots() {
    mark 1
    claim "a snapshot is taken while a client writes" marcot snap create --no-progress image@one
    mark 2
    claim "a second snapshot is taken while a client writes" marcot snap create --no-progress image@two
    mark 3
    marcot export --no-progress image@one "$CLAIMS_SCRATCH/one.raw"
    claim "the first has what was acknowledged before its command" shows "$CLAIMS_SCRATCH/one.raw" 1
    claim "the second has what was acknowledged before its command" shows "$(at image@two)" 2
    claim "the image has the last write" shows "$(at image)" 3
    claim "a snapshot is renamed" marcot snap rename image@two image@zwei
    claim "a snapshot is protected" marcot snap protect image@one
    claim "a snapshot is cloned" marcot clone image@one child
    claim "the clone has the snapshot's content" shows "$(at child)" 1
    claim "a snapshot is cloned without protection, with clone format 2" \
        marcot clone --rbd-default-clone-format 2 image@zwei child-2
    claim "the clone of format 2 has the snapshot's content" shows "$(at child-2)" 2
    claim "snap ls lists them" test "$(marcot snap ls image | wc -l)" = 3
}

looks() {
    claim "info answers" grep -q 'size 128 MiB' <(marcot info image)
    claim "ls -l shows who has it" grep -q 'excl' <(marcot ls -l)
    claim "status names the watcher" grep -q "watcher=.*$SERVER" <(marcot status image)
    claim "du answers" grep -q 'image@one' <(marcot du image)
    claim "diff answers" test -n "$(marcot diff --from-snap one image)"
    claim "children answers" grep -q 'rbd/child' <(marcot children image@one)
    claim "check finds the pool in order" marcot check rbd --no-progress
    claim "gc runs meanwhile" marcot gc rbd --no-progress
}

changes() {
    claim "the image is grown" marcot resize --no-progress image --size 160M
    claim "a client sees the new size" test "$(nbdinfo --size "$(at image)")" = $((160 << 20))
    claim "the image is copied" marcot cp --no-progress image copy
    claim "the copy has its content" shows "$(at copy)" 3
    io "$(at child)" 'write -P 9 100M 4M'
    claim "a served clone is flattened" marcot flatten --no-progress child
    claim "the flattened clone keeps its content" shows "$(at child)" 1
    claim "the flattened clone has no parent any more" test -z "$(marcot info child | grep parent)"
    claim "removing the image is refused (39: it has snapshots)" \
        refuses 39 "*has snapshots*" marcot rm --no-progress image
    claim "the image is renamed" marcot rename image renamed
    claim "the image is renamed back" marcot rename renamed image
    claim "a snapshot is unprotected" marcot snap unprotect image@one
    claim "an unprotected snapshot is removed" marcot snap rm --no-progress image@one
    stay_connected -r image@zwei
    tell 'read -P 2 64M 16M'
    claim "a snapshot that a client reads is not removed (16); the message names the server's process" \
        refuses 16 "*in use by process $SERVER*" marcot snap rm --no-progress image@zwei
    leave
    claim "it is removed as soon as the client is gone, though it has a child of format 2" \
        marcot snap rm --no-progress image@zwei
    claim "snap ls does not show it any more" test -z "$(marcot snap ls image)"
    claim "its child keeps its content" shows "$(at child-2)" 2
}


# The name of an open image is given to another image. The server must not confuse the two.
renames() {
    shows "$(at copy)" 3
    marcot rename copy moved
    claim "a renamed open image is served under its new name at once" shows "$(at moved)" 3
    claim "it is not served under its old name" not_served copy
    marcot create copy --size 8M
    claim "another image that gets the old name is served under it" test "$(nbdinfo --size "$(at copy)")" = $((8 << 20))
    marcot snap create --no-progress moved@s
    shows "$(at moved@s)" 3
    marcot snap rename moved@s moved@old
    marcot resize --no-progress moved --size 200M
    marcot snap create --no-progress moved@s
    claim "another snapshot that gets the name of a renamed one is served under it" test "$(nbdinfo --size "$(at moved@s)")" = $((200 << 20))
}

not_served() {
    ! qemu-img info "$(at "$1")" >"$CLAIMS_SCRATCH/out" 2>&1 && grep -q "does not exist" "$CLAIMS_SCRATCH/out"
}

# A client that stays connected while its image is rolled back and shrunk.
connected() {
    marcot create held --size 32M
    io "$(at held)" 'write -P 1 0 1M'
    marcot snap create --no-progress held@one
    stay_connected held
    tell 'write -P 2 0 1M'
    tell 'read -P 2 0 1M'
    claim "an image with a client is rolled back" marcot snap rollback --no-progress held@one
    tell 'read -P 1 0 1M'
    tell 'write -P 3 64k 64k'
    tell 'read -P 3 64k 64k'
    claim "the client sees the rollback at once and goes on" no_failure
    claim "an image with a client is shrunk" marcot resize --no-progress --allow-shrink held --size 16M
    tell 'read -P 3 64k 64k'
    claim "the client reads what is left" no_failure
    tell 'read 20M 4k'
    claim "the client's read beyond the new end is refused" grep -q 'read failed: Invalid argument' "$CLAIMS_SCRATCH/held"
    marcot snap rm --no-progress held@one
    claim "an image with a client is not removed (16); the message names the server's process" \
        refuses 16 "*in use by process $SERVER*" marcot rm --no-progress held
    leave
    claim "it is removed as soon as the client is gone, though the server keeps it open" marcot rm --no-progress held
}

# stay_connected [OPTION] EXPORT : starts a client. `tell` gives it commands; `leave` ends it.
stay_connected() {
    local options=("${@:1:$#-1}")
    rm -f "$CLAIMS_SCRATCH/commands"
    mkfifo "$CLAIMS_SCRATCH/commands"
    # Empty it here: the new client truncates it only when the FIFO has a writer. Until then, `answers` would
    # count the answers of the client before.
    : >"$CLAIMS_SCRATCH/held"
    stdbuf -oL qemu-io "${options[@]}" -f raw "$(at "${*: -1}")" \
        <"$CLAIMS_SCRATCH/commands" >"$CLAIMS_SCRATCH/held" 2>&1 &
    CLIENT=$!
    own "$CLIENT"
    exec 3>"$CLAIMS_SCRATCH/commands"
}

leave() {
    exec 3>&-
    wait "$CLIENT" || true
    disown_ended "$CLIENT"
}

# tell COMMAND : gives the connected client a command, and waits for the answer.
tell() {
    local before tenths=0
    before=$(answers)
    printf '%s\n' "$1" >&3
    until (($(answers) > before)); do
        ((tenths++ < 1200)) || { echo "no answer to: $1" && exit 1; }
        sleep 0.1
    done
}

answers() {
    grep -c 'bytes at offset\|failed' "$CLAIMS_SCRATCH/held" || true
}

no_failure() {
    ! grep -i 'fail\|error' "$CLAIMS_SCRATCH/held"
}

# A server keeps images and snapshots open for a while without a client. It closes them at once when another
# command needs them.
gives_way() {
    local kept
    marcot create kept --size 16M
    marcot snap create --no-progress kept@s
    for kept in kept kept@s; do
        qemu-img info "$(at $kept)" >"$CLAIMS_SCRATCH/out"
    done
    claim "open in the server without a client: a snapshot is removed at once" marcot snap rm --no-progress kept@s
    claim "open in the server without a client: an image is mapped" maps kept
    qemu-img info "$(at kept)" >"$CLAIMS_SCRATCH/out"
    claim "open in the server without a client: gc works" marcot gc rbd --no-progress
    qemu-img info "$(at kept)" >"$CLAIMS_SCRATCH/out"
    claim "open in the server without a client: check repairs" marcot check rbd --repair --no-progress
    qemu-img info "$(at kept)" >"$CLAIMS_SCRATCH/out"
    claim "open in the server without a client: a second server opens the image" second_server kept
    qemu-img info "$(at kept)" >"$CLAIMS_SCRATCH/out"
    claim "open in the server without a client: the image is removed" marcot rm --no-progress kept
}

maps() {
    local device
    device=$(marcot device map "$1") && marcot device unmap "$device"
}

# Another user connects to the control socket of an open image, or puts another socket in its place.
strangers() {
    local socket
    marcot create ours --size 16M
    stay_connected ours
    tell 'write -P 1 0 1M'
    socket=$MARCOT_STORE/pools/rbd/images/$(marcot info ours | sed -n 's/^\tid: //p')/owner.sock
    chmod 711 "$MARCOT_STORE" "$MARCOT_STORE"/pools{,/rbd{,/images,/images/*}}
    chmod 666 "$socket"
    claim "the control socket answers root" hears_something python3 "$socket"
    claim "the control socket answers no other user, whatever its mode" hears_nothing \
        setpriv --reuid 65534 --regid 65534 --clear-groups /usr/bin/python3 "$socket"
    claim "a control socket that belongs to another user is not used (13)" not_spoken_to "$socket" chown 65534
    chown 0 "$socket"
    claim "a control socket behind a symbolic link is not used (13)" not_spoken_to "$socket" linked
    mv "$socket.away" "$socket"
    leave
    marcot rm --no-progress ours
}

# hears_something PYTHON... SOCKET : connects to the socket with the command PYTHON, sends a request, and gets
# an answer.
hears_something() {
    "${@:1:$#-1}" - "${*: -1}" <<'END'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect(sys.argv[1])
try:
    s.sendall(b"\2\0\0\0\0\0\0\0{}")
    heard = s.recv(1)
except (BrokenPipeError, ConnectionResetError):
    heard = b""
sys.exit(0 if heard else 3)
END
}

hears_nothing() {
    local status=0
    hears_something "$@" || status=$?
    ((status == 3))
}

# not_spoken_to SOCKET COMMAND... : runs the command, which changes the socket; then marcot refuses to use it.
not_spoken_to() {
    local socket=$1
    shift
    "$@" "$socket"
    refuses 13 "*is not used*" marcot resize --no-progress ours --size 32M || return 1
    marcot info ours | grep -q 'size 16 MiB'
}

linked() {
    mv "$1" "$1.away"
    ln -s "$1.away" "$1"
}

second_owner() {
    claim "a second server cannot open the image; the message names the first one's process" \
        refuses 1 "*in use by process $SERVER*" second_server image
    claim "the image cannot be mapped; the message names the server's process" refuses 16 "*process $SERVER*" marcot device map image
}

second_server() {
    start_owned "$MARCOT" serve --socket "$CLAIMS_SCRATCH/sock-2" >"$CLAIMS_SCRATCH/second" 2>&1
    local pid=$! status=0 tenths=0
    until grep -q "^listening on" "$CLAIMS_SCRATCH/second" || ((tenths++ >= SERVER_WAIT_TENTHS)); do sleep 0.1; done
    qemu-img info "nbd+unix:///rbd/$1?socket=$CLAIMS_SCRATCH/sock-2" || status=1
    kill -TERM "$pid"
    wait "$pid" || true
    disown_ended "$pid"
    return $status
}

# scattered VERB : one block in every leaf of the image's map. The whole map takes about 24 MiB of memory.
scattered() {
    local i verb=$1
    for ((i = 0; i < 4096; i++)); do printf '%s -P 5 %dM 4k\n' "$verb" $((2 * i)); done
}

# resident ARGUMENT... : starts a server with the arguments, writes and reads the scattered blocks, and sets
# $RESIDENT_KIB to the server's resident memory.
resident() {
    marcot create wide --size 8G
    serve "$SOCKET" "$@"
    scattered write | qemu-io -f raw "$(at wide)" >"$CLAIMS_SCRATCH/io" 2>&1
    scattered read | qemu-io -f raw "$(at wide)" >>"$CLAIMS_SCRATCH/io" 2>&1
    RESIDENT_KIB=$(awk '/^VmRSS:/ { print $2 }' "/proc/$SERVER/status")
    stop_serving "$SERVER"
    marcot rm --no-progress wide
    ! grep -i 'fail\|error' "$CLAIMS_SCRATCH/io"
}

map_memory() {
    local usual
    claim "an image whose map is scattered is written and read" resident
    usual=$RESIDENT_KIB
    claim "an image whose map is scattered is written and read with a map memory of 1 MiB" resident --map-memory 1M
    claim "that server takes at least 12 MiB less ($RESIDENT_KIB instead of $usual KiB)" test $((RESIDENT_KIB + 12 * 1024)) -lt "$usual"
    claim "a map memory below 1 MiB is refused" refuses 22 "*at least 1M" marcot serve --map-memory 512K --socket "$SOCKET"
    claim "a map memory that is no size is refused" refuses 1 "*'--map-memory' is invalid" marcot device map --map-memory much image
}

writer_is_well() {
    kill -0 "$WRITER" || { cat "$CLAIMS_SCRATCH/fio" && return 1; }
    kill -INT "$WRITER"
    wait "$WRITER" || true
    disown_ended "$WRITER"
    ! grep -i 'error=\|io_u error' "$CLAIMS_SCRATCH/fio"
}

main() {
    need_packages fio libnbd-bin qemu-utils
    commands_begin "$@"
    SOCKET=$CLAIMS_SCRATCH/sock
    export MARCOT_LOG=warn
    marcot create image --size 128M
    serve "$SOCKET" rbd --idle-time-s 2
    start_writer image
    sleep 1
    snapshots
    looks
    changes
    renames
    connected
    gives_way
    strangers
    second_owner
    claim "the client wrote all the time, without an error" writer_is_well
    claim "the server ends in good order" stop_serving "$SERVER"
    map_memory
    claim "check finds the pool in order afterwards" marcot check rbd --no-progress
    claims_end
}

main "$@"
