#!/usr/bin/env bash
# File systems on clones that are mapped on this machine: a workload runs, a snapshot is taken meanwhile, and
# a clone of that snapshot is mounted and checked. Also what is left when the serving process is killed.
#
# usage: mapped-filesystems.sh --marcot BINARY
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

# How many files the workload has written and synced before the snapshot, and how many more after it.
FILES=40
WAIT_TENTHS=1200

# Ends the writers first, then the mounts, then the devices, then the rest. The devices are unmapped with
# force, so that an interrupted run leaves none.
clean_up() {
    trap '' INT TERM HUP
    touch "$CLAIMS_SCRATCH/stop"
    claims_end_owned
    claims_unmount "$CLAIMS_SCRATCH/mnt."
    claims_unmap_devices
    claims_clean
}

# workload DIRECTORY : writes files, syncs, renames and deletes them. Adds the name and checksum of each
# synced file to DIRECTORY.synced, in order. Keeps the last 30 files. While the file `keep` exists, deletes
# none of the listed files, only others.
workload() {
    local directory=$1 i=0 sum
    while [[ ! -e $CLAIMS_SCRATCH/stop ]]; do
        i=$((i + 1))
        head -c $((RANDOM * 8 + 1)) /dev/urandom >"$directory/new"
        sum=$(sha256sum <"$directory/new")
        sync "$directory/new"
        mv "$directory/new" "$directory/file-$i"
        sync "$directory"
        printf '%s %s\n' "file-$i" "$sum" >>"$directory.synced"
        if [[ -e $CLAIMS_SCRATCH/keep ]]; then
            rm -f "$directory/passing"
            mkdir -p "$directory/passing.d" && rmdir "$directory/passing.d"
            printf 'passing %d\n' "$i" >"$directory/passing"
        elif ((i > 30)); then
            rm -f "$directory/file-$((i - 30))"
        fi
    done
}

make_fs() {
    case $1 in
    ext4) mkfs.ext4 -q -F "$2" ;;
    xfs) mkfs.xfs -q -f "$2" ;;
    esac
}

is_clean() {
    case $1 in
    ext4) e2fsck -fn "$2" >"$CLAIMS_SCRATCH/fsck" 2>&1 ;;
    xfs) xfs_repair -n "$2" >"$CLAIMS_SCRATCH/fsck" 2>&1 ;;
    esac || { cat "$CLAIMS_SCRATCH/fsck" && return 1; }
}

# holds DIRECTORY LIST : the last 20 files of LIST are there and whole.
holds() {
    local name sum rest found=0
    while read -r name sum rest; do
        [[ $(sha256sum <"$1/$name") == "$sum  -" ]] || { echo "$name differs" && return 1; }
        found=$((found + 1))
    done < <(tail -n 20 "$2")
    ((found > 0)) && [[ -z ${rest#-} ]]
}

# await_files DIRECTORY COUNT : waits until the workload has written COUNT files.
await_files() {
    local tenths=0
    until [[ -e $1.synced ]] && (($(wc -l <"$1.synced") >= $2)); do
        ((tenths++ < WAIT_TENTHS)) || { echo "the workload makes no progress" && return 1; }
        sleep 0.1
    done
}

file_system() {
    local fs=$1 device copy directory=$CLAIMS_SCRATCH/mnt.$1 clone_directory=$CLAIMS_SCRATCH/mnt.$1-clone worker
    mkdir "$directory" "$clone_directory"
    "$MARCOT" clone template@s "$fs"
    device=$("$MARCOT" device map "$fs")
    make_fs "$fs" "$device"
    mount "$device" "$directory"
    rm -f "$CLAIMS_SCRATCH/stop"
    workload "$directory" &
    worker=$!
    own "$worker"
    await_files "$directory" "$FILES"
    touch "$CLAIMS_SCRATCH/keep"
    cp "$directory.synced" "$CLAIMS_SCRATCH/before"
    claim "$fs: a snapshot is taken while the workload runs" "$MARCOT" snap create --no-progress "$fs@mounted"
    rm "$CLAIMS_SCRATCH/keep"
    claim "$fs: the workload still writes after the snapshot" await_files "$directory" $(($(wc -l <"$directory.synced") + FILES))
    touch "$CLAIMS_SCRATCH/stop"
    claim "$fs: the workload ends without an error" wait "$worker"
    disown_ended "$worker"
    "$MARCOT" snap protect "$fs@mounted"
    "$MARCOT" clone "$fs@mounted" "$fs-clone"
    copy=$("$MARCOT" device map "$fs-clone")
    # The two file systems have the same UUID. By default, xfs does not mount a UUID twice.
    local options=rw
    [[ $fs != xfs ]] || options=nouuid
    claim "$fs: a clone of the snapshot mounts" mount -o "$options" "$copy" "$clone_directory"
    claim "$fs: what was synced before the snapshot is in it" holds "$clone_directory" "$CLAIMS_SCRATCH/before"
    umount "$clone_directory"
    claim "$fs: the clone's file system is clean" is_clean "$fs" "$copy"
    "$MARCOT" device unmap "$copy"
    claim "$fs: what was synced is on the original" holds "$directory" "$directory.synced"
    umount "$directory"
    claim "$fs: the original's file system is clean" is_clean "$fs" "$device"
    claim "$fs: the device is unmapped" "$MARCOT" device unmap "$device"
}

server_of() {
    sed -n 's/.*"pid": \([0-9]*\),*/\1/p' "$MARCOT_RUN_DIR"/*.json
}

killed_server() {
    local device directory=$CLAIMS_SCRATCH/mnt.killed pid sum
    mkdir "$directory"
    "$MARCOT" clone template@s killed
    device=$("$MARCOT" device map -t fuse killed)
    mkfs.ext4 -q -F "$device"
    mount "$device" "$directory"
    head -c 3000000 /dev/urandom >"$directory/file"
    sync "$directory/file"
    sum=$(sha256sum <"$directory/file")
    pid=$(server_of)
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    claim "killed server: device list still shows the device" \
        grep -q "$device" <("$MARCOT" device list)
    claim "killed server: with FUSE and loop, a write fails at once and does not hang" write_fails "$directory/late"
    umount "$directory" || umount -l "$directory"
    claim "killed server: device unmap clears what is left" "$MARCOT" device unmap "$device"
    claim "killed server: no device is listed" test -z "$("$MARCOT" device list)"
    claim "killed server: no mount is left" not_mounted
    device=$("$MARCOT" device map -t fuse killed)
    claim "killed server: the image maps and mounts again" mount "$device" "$directory"
    claim "killed server: what was synced is there" test "$(sha256sum <"$directory/file")" = "$sum"
    umount "$directory"
    claim "killed server: its file system is clean" is_clean ext4 "$device"
    claim "killed server: the image is unmapped in good order" "$MARCOT" device unmap "$device"
}

# write_fails FILE : writing and syncing the file fails soon.
write_fails() {
    local status=0
    timeout 120 dd if=/dev/zero of="$1" bs=1M count=1 conv=fsync status=none 2>/dev/null || status=$?
    ((status != 0 && status != 124))
}

# A service manager sends SIGTERM to processes, whatever is mounted.
terminated_server() {
    local device directory=$CLAIMS_SCRATCH/mnt.terminated pid tenths=0
    mkdir "$directory"
    "$MARCOT" clone template@s terminated
    device=$("$MARCOT" device map -t fuse terminated)
    mkfs.ext4 -q -F "$device"
    mount "$device" "$directory"
    pid=$(server_of)
    kill -TERM "$pid"
    sleep 1
    kill -TERM "$pid"
    sleep 0.5
    claim "SIGTERM while mounted: the server goes on serving" kill -0 "$pid"
    claim "SIGTERM while mounted: the file system takes writes" \
        dd if=/dev/urandom of="$directory/file" bs=1M count=8 conv=fsync status=none
    umount "$directory"
    while kill -0 "$pid" 2>/dev/null && ((tenths++ < WAIT_TENTHS)); do sleep 0.1; done
    claim "SIGTERM while mounted: the server ends when the file system is unmounted" test ! -e "/proc/$pid"
    claim "SIGTERM while mounted: the device is gone after that" test -z "$("$MARCOT" device list)"
}

# With force, a device is unmapped though its file system is mounted. What was synced is in the image.
forced() {
    local device directory=$CLAIMS_SCRATCH/mnt.forced pid sum backing tenths=0
    mkdir "$directory"
    "$MARCOT" clone template@s forced
    device=$("$MARCOT" device map -t fuse --map-memory 1M forced)
    backing=$(backing "$device")
    mkfs.ext4 -q -F "$device"
    mount "$device" "$directory"
    head -c 3000000 /dev/urandom >"$directory/file"
    sync "$directory/file"
    sum=$(sha256sum <"$directory/file")
    pid=$(server_of)
    claim "force: a mounted device is not unmapped without it" not "$MARCOT" device unmap "$device"
    claim "force: nor with an unknown option" not "$MARCOT" device unmap -o farce "$device"
    claim "force: with it, a mounted device is unmapped" timeout 120 "$MARCOT" device unmap -o force "$device"
    while kill -0 "$pid" 2>/dev/null && ((tenths++ < WAIT_TENTHS)); do sleep 0.1; done
    claim "force: its server has ended" test ! -e "/proc/$pid"
    claim "force: the device is not listed any more" test -z "$("$MARCOT" device list)"
    claim "force: no mount of ours is left" not_mounted
    claim "force: a write fails at once and does not hang" write_fails "$directory/late"
    umount "$directory" || umount -l "$directory"
    while [[ $(backing "$device") == "$backing" ]] && ((tenths++ < WAIT_TENTHS)); do sleep 0.1; done
    claim "force: the loop device is free when its last user has gone" test "$(backing "$device")" != "$backing"
    device=$("$MARCOT" device map -t fuse forced)
    claim "force: the image maps and mounts again" mount "$device" "$directory"
    claim "force: what was synced is there" test "$(sha256sum <"$directory/file")" = "$sum"
    pid=$(server_of)
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    claim "force: a mounted device whose server is dead is not unmapped without it" not "$MARCOT" device unmap "$device"
    claim "force: with it, a mounted device whose server is dead is unmapped" "$MARCOT" device unmap -o force "$device"
    umount "$directory" || umount -l "$directory"
    claim "force: nothing is listed or mounted" test -z "$("$MARCOT" device list)$(grep "$MARCOT_RUN_DIR" /proc/mounts)"
}

# backing LOOP-DEVICE : prints device and inode of its backing file, or nothing if the loop device is free.
# Another program may take a free one at once.
backing() {
    losetup --noheadings --output BACK-MAJ:MIN,BACK-INO "$1" 2>/dev/null || true
}

not_mounted() {
    ! grep -q "$MARCOT_RUN_DIR" /proc/mounts
}

main() {
    [[ $#:${1-} == 2:--marcot ]] || { sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
    MARCOT=$(realpath "$2")
    need_packages e2fsprogs xfsprogs
    claims_begin
    trap clean_up EXIT
    export MARCOT_STORE=$CLAIMS_SCRATCH/store MARCOT_RUN_DIR=$CLAIMS_SCRATCH/run
    "$MARCOT" create template --size 400M
    "$MARCOT" snap create --no-progress template@s
    "$MARCOT" snap protect template@s
    file_system ext4
    file_system xfs
    killed_server
    terminated_server
    forced
    claim "check finds the pool in order" "$MARCOT" check rbd --no-progress
    claims_end
}

main "$@"
