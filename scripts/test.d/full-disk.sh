#!/usr/bin/env bash
# Space on a full disk is freed by removing snapshots and images, by shrinking and by discarding. This also
# works after the server was killed and its log has to be replayed, and several times in a row.
#
# usage: full-disk.sh --marcot BINARY
#
# environment: KEEP=yes (keep a failed run's files)
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

# mkfs.xfs refuses disks below 300 MiB.
DISK_MIB=320
# How long to wait for space. It usually comes back within seconds.
SPACE_WAIT_TENTHS=300

# begin_disk FS : makes an empty store on a disk of its own with that file system.
begin_disk() {
    DISK=$CLAIMS_SCRATCH/disk SOCKET=$CLAIMS_SCRATCH/disk.sock IMAGE=$CLAIMS_SCRATCH/disk.raw
    mkdir "$DISK"
    truncate -s "${DISK_MIB}M" "$IMAGE"
    if [[ $1 == ext4 ]]; then mkfs.ext4 -q -F -m 0 "$IMAGE"; else mkfs.xfs -q -f "$IMAGE"; fi
    mount -o loop "$IMAGE" "$DISK"
    export MARCOT_STORE=$DISK/store
    marcot create vm --size 64M
    serve "$SOCKET"
}

end_disk() {
    if [[ -n $SERVER ]]; then stop_serving "$SERVER"; fi
    umount "$DISK"
    rmdir "$DISK"
    rm "$IMAGE"
}

# fill NUMBER : fills the disk with other files, to the last block.
fill() {
    dd if=/dev/zero of="$DISK/fill.$1" bs=64k status=none 2>/dev/null || true
    dd if=/dev/zero of="$DISK/rest.$1" bs=1k status=none 2>/dev/null || true
}

free_kib() {
    df -k --output=avail "$DISK" | tail -n 1
}

# frees KIB COMMAND... : the command succeeds, and soon at least KIB more are free.
frees() {
    local wanted=$1 before tenths=0
    shift
    before=$(free_kib)
    does "$@" || return 1
    until (($(free_kib) >= before + wanted)); do
        if ((tenths++ >= SPACE_WAIT_TENTHS)); then
            printf '#   %d KiB were free, and %d are\n' "$before" "$(free_kib)"
            return 1
        fi
        sleep 0.1
    done
}

kill_server() {
    kill -9 "$SERVER"
    wait "$SERVER" 2>/dev/null || true
    disown_ended "$SERVER"
    SERVER=
}

trims() {
    io "$(uri "$SOCKET" rbd/vm)" "discard $1 $2" flush
}

removals_after_a_kill() {
    local fs=$1
    begin_disk "$fs"
    io "$(uri "$SOCKET" rbd/vm)" "write -P 1 0 32M" flush
    marcot snap create --no-progress vm@one
    io "$(uri "$SOCKET" rbd/vm)" "write -P 2 0 32M" flush
    marcot snap create --no-progress vm@two
    io "$(uri "$SOCKET" rbd/vm)" "write -P 3 0 32M" "write -P 4 40M 8M" flush
    fill 1
    kill_server
    claim "$fs full, server killed: a snapshot can be removed, and its space is freed" \
        frees 20000 marcot snap rm --no-progress vm@one
    fill 2
    claim "$fs full again: the next snapshot can be removed, and its space is freed" frees 20000 marcot snap rm --no-progress vm@two
    fill 3
    claim "$fs full again: the image can be shrunk" \
        frees 4000 marcot resize --no-progress --size 40M --allow-shrink vm
    serve "$SOCKET"
    claim "$fs: the last writes can be read" io "$(uri "$SOCKET" rbd/vm)" "read -P 3 0 32M" "read -P 0 32M 8M"
    fill 4
    claim "$fs full again: a discard frees space" frees 8000 trims 0 16M
    claim "$fs: as much can be written again" io "$(uri "$SOCKET" rbd/vm)" "write -P 5 0 8M" flush
    claim "$fs: the image has all of its data" io "$(uri "$SOCKET" rbd/vm)" "read -P 5 0 8M" "read -P 0 8M 8M" "read -P 3 16M 16M"
    fill 5
    kill_server
    claim "$fs full, server killed again: the image can be removed" frees 16000 marcot rm --no-progress vm
    claim "$fs: the pool is in order" sound rbd
    end_disk
}

after_an_end_without_room() {
    local fs=$1
    begin_disk "$fs"
    io "$(uri "$SOCKET" rbd/vm)" "write -P 1 0 32M" flush
    marcot snap create --no-progress vm@one
    io "$(uri "$SOCKET" rbd/vm)" "write -P 2 0 32M" flush
    fill 1
    claim "$fs full: the server ends in good order" stop_serving "$SERVER"
    SERVER=
    claim "$fs full, server ended: all snapshots can be removed" frees 20000 marcot snap purge --no-progress vm
    serve "$SOCKET"
    claim "$fs: nothing is lost" io "$(uri "$SOCKET" rbd/vm)" "read -P 2 0 32M"
    claim "$fs: the pool is in order" sound rbd
    end_disk
}

main() {
    need_packages qemu-utils e2fsprogs xfsprogs
    commands_begin "$@"
    export MARCOT_LOG=error
    local fs
    for fs in ext4 xfs; do
        removals_after_a_kill "$fs"
        after_an_end_without_room "$fs"
    done
    claims_end
}

main "$@"
