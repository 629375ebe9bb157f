#!/usr/bin/env bash
# A full disk is emptied: by removing snapshots and images, by shrinking, by discarding. Also after the
# owner was killed, with a log that has to be replayed, and again and again.
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

# xfs takes no disk below 300 MiB.
DISK_MIB=320
# A hang is a failure; space comes back within seconds.
SPACE_WAIT_TENTHS=300

# An empty store on a disk of its own, of a file system.
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

# Somebody else fills the disk, to the last block.
fill() {
    dd if=/dev/zero of="$DISK/fill.$1" bs=64k status=none 2>/dev/null || true
    dd if=/dev/zero of="$DISK/rest.$1" bs=1k status=none 2>/dev/null || true
}

free_kib() {
    df -k --output=avail "$DISK" | tail -n 1
}

# frees KIB COMMAND... : succeeds, and so much more is free then, soon.
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
    claim "$fs full, server killed: a snapshot can be removed, and that makes room" \
        frees 20000 marcot snap rm --no-progress vm@one
    fill 2
    claim "$fs full again: so can the next one" frees 20000 marcot snap rm --no-progress vm@two
    fill 3
    claim "$fs full again: the image can be made smaller" \
        frees 4000 marcot resize --no-progress --size 40M --allow-shrink vm
    serve "$SOCKET"
    claim "$fs: what was written last is there" io "$(uri "$SOCKET" rbd/vm)" "read -P 3 0 32M" "read -P 0 32M 8M"
    fill 4
    claim "$fs full again: a guest trims" frees 8000 trims 0 16M
    claim "$fs: and can write as much as that" io "$(uri "$SOCKET" rbd/vm)" "write -P 5 0 8M" flush
    claim "$fs: and has all of its data" io "$(uri "$SOCKET" rbd/vm)" "read -P 5 0 8M" "read -P 0 8M 8M" "read -P 3 16M 16M"
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
    claim "$fs full: the server ends well" stop_serving "$SERVER"
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
