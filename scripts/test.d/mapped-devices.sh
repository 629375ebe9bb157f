#!/usr/bin/env bash
# Mapped devices: they have the names, sizes, options and quiesce hooks that programs for RBD expect. Other
# users cannot interfere with the directory of the records or with the process that serves.
#
# usage: mapped-devices.sh --marcot BINARY
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

# A user without rights on files that root makes.
NOBODY=65534

clean_up() {
    umount "$CLAIMS_SCRATCH/mnt" "$CLAIMS_SCRATCH/mnt2" 2>/dev/null || true
    claims_unmap_devices
    claims_clean
}

mode_of() {
    stat -c %a "$1"
}

record_member() {
    sed -n "s/.*\"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},*$/\1/p" "$MARCOT_RUN_DIR/$1.json" | head -n 1
}

number_of() {
    stat -Lc '%t:%T' "$1"
}

# --- the directory of the records -------------------------------------------------------------------

private_directory() {
    local run=$MARCOT_RUN_DIR device mine=$CLAIMS_SCRATCH/mine
    device=$("$MARCOT" device map plain)
    claim "records: only the owner can use their directory" test "$(mode_of "$run")" = 700
    claim "records: only the owner can use each file" test "$(find "$run" -type f -not -perm 600)" = ""
    claim "records: a second map of an image is refused" not "$MARCOT" device map plain
    claim "records: the refusal names the device" refusal_says "mapped already as $device"
    "$MARCOT" device unmap "$device"

    mkdir "$mine"
    chmod 777 "$mine"
    claim "records: a directory that others can write to is refused" \
        not env MARCOT_RUN_DIR="$mine" "$MARCOT" device map plain
    claim "records: the refusal says what to do" refusal_says "set MARCOT_RUN_DIR"
    chmod 700 "$mine"
    chown "$NOBODY" "$mine"
    claim "records: a directory of another user is refused" not env MARCOT_RUN_DIR="$mine" "$MARCOT" device list
    claim "records: the refusal names the directory's owner" refusal_says "belongs to user $NOBODY"
    ln -s "$run" "$CLAIMS_SCRATCH/link"
    claim "records: a link to a directory is refused" \
        not env MARCOT_RUN_DIR="$CLAIMS_SCRATCH/link" "$MARCOT" device list
}

# A user without XDG_RUNTIME_DIR, and a directory prepared by somebody else where TMPDIR is.
planted_directory() {
    local shared=$CLAIMS_SCRATCH/shared home=$CLAIMS_SCRATCH/home
    mkdir "$shared" "$home"
    chmod 1777 "$shared"
    mkdir "$shared/marcot"
    chmod 777 "$shared/marcot"
    echo precious >"$home/precious"
    ln -s "$home/precious" "$shared/marcot/0.log"
    chown -R "$NOBODY" "$home"
    chmod 755 "$CLAIMS_SCRATCH"
    cp "$MARCOT" "$CLAIMS_SCRATCH/marcot"
    chmod 755 "$CLAIMS_SCRATCH/marcot"
    as_nobody() {
        setpriv --reuid "$NOBODY" --regid "$NOBODY" --clear-groups env -i PATH="$PATH" HOME="$home" \
            TMPDIR="$shared" MARCOT_STORE="$home/store" "$CLAIMS_SCRATCH/marcot" "$@"
    }
    as_nobody create --size 1 own
    as_nobody device map own >/dev/null 2>&1 || true
    claim "records: they are not put into a directory that others prepared" test "$(ls "$shared/marcot")" = 0.log
    claim "records: nothing is written through a link that others planted" \
        test "$(cat "$home/precious")" = precious
}

forged_record() {
    local device bystander
    device=$("$MARCOT" device map plain)
    sed 's/"id": 0/"id": 5/; s/"rbd0"/"rbd5"/' "$MARCOT_RUN_DIR/0.json" >"$CLAIMS_SCRATCH/record"
    "$MARCOT" device unmap "$device"
    start_owned sleep 300
    bystander=$!
    sed "s/\"pid\": [0-9]*/\"pid\": $bystander/" "$CLAIMS_SCRATCH/record" >"$MARCOT_RUN_DIR/5.json"
    chmod 600 "$MARCOT_RUN_DIR/5.json"
    "$MARCOT" device unmap -o force plain 2>/dev/null || true
    "$MARCOT" device unmap -o force "$device" 2>/dev/null || true
    claim "records: a process is not ended because a record names it" kill -0 "$bystander"
    claim "records: a record of a device without a server is removed" test ! -e "$MARCOT_RUN_DIR/5.json"
    echo nonsense >"$MARCOT_RUN_DIR/6.json"
    claim "records: a file that is no record is not listed" test -z "$("$MARCOT" device list 2>"$CLAIMS_SCRATCH/refusal")"
    claim "records: a warning names the file that is no record" refusal_says "6.json is no record of a mapped device"
    rm "$MARCOT_RUN_DIR/6.json"
}

# --- the process that serves ------------------------------------------------------------------------

server_process() {
    local device pid
    exec 8>"$CLAIMS_SCRATCH/lock"
    flock 8
    device=$(SECRET=of-the-caller AWS_SESSION_TOKEN=of-the-bucket "$MARCOT" device map plain)
    exec 8>&-
    pid=$(record_member 0 pid)
    claim "server: it does not hold a lock of the caller" flock -n "$CLAIMS_SCRATCH/lock" true
    claim "server: it keeps nothing of the caller's environment that marcot does not read" \
        not grep -qz "SECRET=\|^TERM=\|^PWD=\|^SHLVL=" "/proc/$pid/environ"
    claim "server: it keeps the credentials with which a bucket is reached" \
        grep -qzx "AWS_SESSION_TOKEN=of-the-bucket" "/proc/$pid/environ"
    claim "server: it has a session of its own" test "$(cut -d' ' -f6 "/proc/$pid/stat")" = "$pid"
    claim "server: it keeps no directory busy" test "$(readlink "/proc/$pid/cwd")" = /
    "$MARCOT" device unmap "$device"
}

# map_without_output HOW : maps an image while standard output is closed or full. Prints the status, and what
# is mapped after that.
map_without_output() {
    local status=0
    case $1 in
        nowhere) "$MARCOT" device map plain >&- 2>"$CLAIMS_SCRATCH/refusal" || status=$? ;;
        full) "$MARCOT" device map plain >/dev/full 2>"$CLAIMS_SCRATCH/refusal" || status=$? ;;
    esac
    echo "$status:$("$MARCOT" device list)"
}

# When the device's name cannot be printed, the image must not stay mapped.
unprinted_names() {
    local device
    claim "output: without standard output nothing is mapped" test "$(map_without_output nowhere)" = 9:
    claim "output: when the device's name cannot be printed, it is unmapped again" test "$(map_without_output full)" = 28:
    claim "output: the message says so" refusal_says "unmapped again"
    device=$("$MARCOT" device map plain)
    claim "output: when the name is printed, the device stays" test "$("$MARCOT" device list | awk 'NR > 1 { print $NF }')" = "$device"
    "$MARCOT" device unmap "$device"
}

# --- names ------------------------------------------------------------------------------------------

names() {
    local dev=$MARCOT_DEV_DIR node device
    echo "not ours" >"$dev/rbd0"
    device=$("$MARCOT" device map plain)
    claim "names: marcot prints the kernel's name of the device" test "${device#/dev/rbd}" = "$device"
    claim "names: a file in the way is not replaced" grep -q "not ours" "$dev/rbd0"
    node=$dev/rbd1
    claim "names: the node with RBD's name has the device's number" test "$(number_of "$node")" = "$(number_of "$device")"
    claim "names: a link names the image" test "$(readlink -f "$dev/rbd/rbd/plain")" = "$node"
    claim "names: called as rbd, marcot lists that node" grep -q "$node" <("$RBD" showmapped)
    claim "names: a list of another driver's devices does not have it" not grep -q "$node" <("$RBD" device list -t fuse)
    addpart "$device" 1 2048 20480
    claim "names: a partition gets a node" eventually test -b "${node}p1"
    claim "names: the partition's node has the partition's number" test "$(number_of "${node}p1")" = "$(number_of "${device}p1")"
    claim "names: a partition gets a link" test "$(readlink -f "$dev/rbd/rbd/plain-part1")" = "${node}p1"
    delpart "$device" 1
    claim "names: node and link are removed with the partition" eventually test ! -e "${node}p1" -a ! -L "$dev/rbd/rbd/plain-part1"
    claim "unmap: by the node" "$MARCOT" device unmap "$node"
    claim "names: node and link are removed with the device" test "$(ls "$dev")" = rbd0
    rm "$dev/rbd0"

    device=$("$RBD" map space/inner/image@s)
    claim "names: called as rbd, map prints RBD's name" test "$device" = "$dev/rbd0"
    claim "names: a link's path has namespace and snapshot" test -b "$dev/rbd/space/inner/image@s"
    "$RBD" map space/inner/image@s >/dev/null 2>"$CLAIMS_SCRATCH/refusal"
    claim "map: of a mapped snapshot names the device" refusal_says "image already mapped as $device"
    "$RBD" unmap space/inner/image@s 2>"$CLAIMS_SCRATCH/refusal"
    claim "unmap: of an image with several devices names the one that is unmapped" refusal_says "more than once; $device is meant"
    "$RBD" map space/inner/image@s >/dev/null 2>&1
    "$RBD" unmap "$dev/rbd1"
    claim "unmap: by a link" "$RBD" unmap "$dev/rbd/space/inner/image@s"
    device=$("$MARCOT" device map plain)
    addpart "$device" 1 2048 20480
    claim "unmap: by a partition" "$MARCOT" device unmap "${device}p1"
    "$MARCOT" device map plain >/dev/null
    ln -s "$dev/rbd0" "$CLAIMS_SCRATCH/elsewhere"
    claim "unmap: by any link to the device" "$MARCOT" device unmap "$CLAIMS_SCRATCH/elsewhere"
    claim "unmap: a device of others is refused" not "$MARCOT" device unmap /dev/loop-control
    claim "unmap: the refusal has RBD's words" refusal_says "'/dev/loop-control' is not a block device"
    device=$("$MARCOT" device map plain)
    exec 8<"$device"
    claim "unmap: a device that a program has open is refused" not "$MARCOT" device unmap plain
    claim "unmap: the refusal names the process" refusal_says "open in process"
    claim "unmap: after a refusal the device still works" \
        dd if="$device" of=/dev/null bs=4096 count=1 iflag=direct status=none
    exec 8<&-
    claim "unmap: a device that was closed is unmapped" "$MARCOT" device unmap plain

    "$MARCOT" create --size 1 rbd/..
    "$MARCOT" device map rbd/.. >/dev/null
    claim "names: an image called .. gets no name outside of the directory" test "$(ls "$dev")" = rbd0
    claim "unmap: an image called .." "$MARCOT" device unmap rbd/..
}

eventually() {
    local tenths=0
    until "$@"; do
        ((tenths++ < 100)) || return 1
        sleep 0.1
    done
}

# Names of a device whose server was killed and that another program then detached.
stale_names() {
    local dev=$MARCOT_DEV_DIR device pid
    device=$("$MARCOT" device map -t fuse plain)
    pid=$(record_member 0 pid)
    kill -9 "$pid"
    eventually test ! -e "/proc/$pid"
    claim "stale: a device is listed while the kernel has it" grep -q "$device" <("$MARCOT" device list)
    claim "stale: a second map is refused" not "$MARCOT" device map plain
    claim "stale: the refusal says that the server has died" refusal_says "whose server has died"
    losetup -d "$device"
    claim "stale: a detached device is not listed any more" eventually test -z "$("$MARCOT" device list)"
    claim "stale: its names and its mount are gone" \
        test -z "$(ls "$dev")$(grep "$MARCOT_RUN_DIR" /proc/mounts)"
    ln -s "$device" "$dev/rbd7"
    mkdir -p "$dev/rbd/rbd"
    ln -s ../../rbd7 "$dev/rbd/rbd/plain"
    device=$("$MARCOT" device map plain)
    claim "stale: the next map removes names without a record" \
        test ! -L "$dev/rbd7" -a "$(readlink "$dev/rbd/rbd/plain")" = ../../rbd0
    "$MARCOT" device unmap "$device"
}

renamed() {
    local device
    device=$("$MARCOT" device map plain)
    "$MARCOT" mv plain other
    claim "renamed: the list has the new name" grep -q " other " <("$MARCOT" device list)
    claim "renamed: the link has the new name" test -b "$MARCOT_DEV_DIR/rbd/rbd/other"
    "$MARCOT" create --size 1 plain
    claim "renamed: the old name does not unmap it" not "$MARCOT" device unmap plain
    claim "renamed: the refusal says that the image of that name is not mapped" refusal_says "rbd/plain: not a mapped image or snapshot"
    claim "renamed: the new name unmaps it" "$MARCOT" device unmap other
    "$MARCOT" rm --no-progress plain
    "$MARCOT" mv other plain
}

# --- sizes ------------------------------------------------------------------------------------------

size_is() {
    test "$(blockdev --getsize64 "$device")" = "$1"
}

sizes() {
    local device mib bad=0 mount=$CLAIMS_SCRATCH/mnt
    "$MARCOT" create --size 320 grows
    device=$("$MARCOT" device map grows)
    mkfs.xfs -q "$device"
    mount "$device" "$mount"
    "$MARCOT" snap create --no-progress grows@small
    for mib in 400 500 600; do
        "$MARCOT" resize --no-progress --size "$mib" grows
        size_is $((mib << 20)) || bad=1
        xfs_growfs "$mount" >/dev/null
        (($(df --output=size -m "$mount" | tail -n 1) > mib - 100)) || bad=1
    done
    claim "resize: the device has the new size when the command returns, and xfs grows" test "$bad" = 0
    umount "$mount"
    "$MARCOT" resize --no-progress --allow-shrink --size 100 grows
    claim "resize: the device also gets a smaller size" size_is $((100 << 20))
    "$MARCOT" snap rollback --no-progress grows@small
    claim "rollback: the device has the snapshot's size" size_is $((320 << 20))
    "$MARCOT" device unmap "$device"

    "$MARCOT" create --size 1048577B odd
    device=$("$MARCOT" device map -t fuse odd)
    claim "odd size: the device ends at the end of the last sector" size_is 1049088
    printf 'Z' | dd of="$device" bs=1 seek=1048576 conv=notrunc,fsync status=none
    "$MARCOT" device unmap "$device"
    claim "odd size: its last byte is written" \
        test "$("$MARCOT" export --no-progress odd - | tail -c +1048577 | head -c 1)" = Z
}

# --- options, and quiesce hooks ---------------------------------------------------------------------

options() {
    local device
    device=$("$RBD" --user someone map -o noudev --options rxbounce,queue_depth=128 \
        -o lock_on_read,ms_mode=prefer-crc plain --device-type krbd --options read_from_replica=no)
    claim "options: map accepts those of RBD's drivers, repeated and in lists" test -b "$device"
    claim "options: unmap accepts them" "$RBD" unmap -o noudev plain --device-type krbd
    claim "options: an unknown option is refused" not "$RBD" map plain -o bogus
    claim "options: the refusal has RBD's words" refusal_says "rbd: unknown map option 'bogus'"
    device=$("$MARCOT" device map -o rw,ro plain)
    claim "options: the last of ro and rw counts" test "$(blockdev --getro "$device")" = 1
    "$MARCOT" device unmap "$device"
    claim "options: a cookie is printed on request" \
        grep -q ' volume-7$' <("$MARCOT" device map --cookie volume-7 --show-cookie --try-netlink \
            --reattach-timeout=300 --io-timeout=0 plain)
    claim "detach: is refused for a device that cannot wait for a server" not "$MARCOT" device detach plain
    claim "detach: the refusal says which devices can be detached" refusal_says "only devices of the NBD driver can be detached"
    "$MARCOT" device unmap plain
}

quiesced() {
    local device mount=$CLAIMS_SCRATCH/mnt hook=$CLAIMS_SCRATCH/hook log=$CLAIMS_SCRATCH/hooked
    printf '#!/bin/sh\necho "$2" >>%s\nenv >%s.environment\n[ ! -e %s.fails ] || [ "$2" != quiesce ]\n' "$log" "$log" "$log" >"$hook"
    chmod +x "$hook"
    device=$(AWS_SESSION_TOKEN=of-the-bucket "$MARCOT" device map --quiesce-hook "$hook" plain)
    "$MARCOT" snap create --no-progress plain@one
    claim "quiesce: a hook runs before and after a snapshot" test "$(tr '\n' ' ' <"$log")" = "quiesce unquiesce "
    claim "quiesce: a hook gets no credentials" not grep -q of-the-bucket "$log.environment"
    touch "$log.fails"
    claim "quiesce: when the hook fails, no snapshot is made" not "$MARCOT" snap create --no-progress plain@two
    claim "quiesce: the message names the hook" refusal_says "$hook $device quiesce"
    claim "quiesce: the hook is called to unquiesce all the same" test "$(tail -n 1 "$log")" = unquiesce
    claim "quiesce: a failure of the hook can be ignored" \
        "$MARCOT" snap create --no-progress --ignore-quiesce-error plain@two
    rm "$log"
    claim "quiesce: the hook can be skipped" "$MARCOT" snap create --no-progress --skip-quiesce plain@three
    claim "quiesce: a skipped hook does not run" test ! -e "$log"
    "$MARCOT" snap purge --no-progress plain
    "$MARCOT" device unmap "$device"

    device=$("$MARCOT" device map --quiesce plain)
    mkfs.ext4 -q -F "$device"
    mount "$device" "$mount"
    echo "never synced" >"$mount/file"
    "$MARCOT" snap create --no-progress plain@frozen
    claim "quiesce: without a hook, the file system is frozen and thawed" \
        timeout 20 sh -c "echo after >'$mount/after' && sync '$mount/after'"
    umount "$mount"
    "$MARCOT" device unmap "$device"
    device=$("$MARCOT" device map plain@frozen)
    claim "quiesce: the snapshot mounts without its journal" mount -o ro,noload "$device" "$mount"
    claim "quiesce: the snapshot holds what was written and not synced" grep -q "never synced" "$mount/file"
    claim "quiesce: the snapshot holds nothing later" test ! -e "$mount/after"
    umount "$mount"
    "$MARCOT" device unmap "$device"
    "$MARCOT" snap purge --no-progress plain
}

# The sequence of ceph-csi, which calls `rbd-nbd`.
as_rbd_nbd() {
    local nbd=$CLAIMS_SCRATCH/bin/rbd-nbd device
    ln -s "$MARCOT" "$nbd"
    device=$("$nbd" --id user -m host --keyfile=key map space/inner/image --try-netlink --reattach-timeout=300 \
        --io-timeout=0 --cookie=volume-1 --nbds_max=16)
    claim "rbd-nbd: map prints the device" test -b "$device"
    claim "rbd-nbd: the list has number, image, device and cookie" python3 - "$nbd" "$device" <<'PYTHON'
import json, subprocess, sys

nbd, device = sys.argv[1:]
[row] = json.loads(subprocess.check_output([nbd, "list-mapped", "--format=json"]))
assert isinstance(row.pop("id"), int), row
names = {"pool": "space", "namespace": "inner", "image": "image", "snap": ""}
assert row == names | {"device": device, "cookie": "volume-1"}, row
PYTHON
    claim "rbd-nbd: unmap by the image" "$nbd" --id user unmap space/inner/image
    claim "rbd-nbd: what is not mapped is refused" not "$nbd" unmap space/inner/image
    claim "rbd-nbd: the refusal has the words that ceph-csi looks for" refusal_says "rbd-nbd: space/inner/image is not mapped"
}

# --- the table of images to map -------------------------------------------------------------

table_of_images() {
    local device table=$CLAIMS_SCRATCH/rbdmap mount=$CLAIMS_SCRATCH/mnt
    local rbdmap=$CLAIMS_SCRATCH/bin/rbdmap
    ln -s "$MARCOT" "$rbdmap"
    printf '%s\n' '# image parameters' plain "space/inner/image@s  id=admin,options='ro,noudev'" >"$table"
    export RBDMAPFILE=$table
    claim "rbdmap: map maps every image of the table" "$rbdmap" map
    claim "rbdmap: an image of the pool rbd needs no pool" test -b "$MARCOT_DEV_DIR/rbd/rbd/plain"
    device=$(realpath "$MARCOT_DEV_DIR/rbd/space/inner/image@s")
    claim "rbdmap: options are those of map" test "$(blockdev --getro "$device")" = 1
    claim "rbdmap: what is mapped stays as it is" "$rbdmap" map
    device=$(realpath "$MARCOT_DEV_DIR/rbd/rbd/plain")
    mkfs.ext4 -q -F "$device"
    mount "$device" "$mount"
    claim "rbdmap: unmap unmounts and unmaps" "$rbdmap" unmap 2>/dev/null
    claim "rbdmap: nothing is mounted then" not mountpoint -q "$mount"
    "$rbdmap" map
    claim "rbdmap: unmap-all leaves nothing mapped" "$rbdmap" unmap-all
    claim "rbdmap: no device is left" test -z "$("$MARCOT" device list)"
    unset RBDMAPFILE
}

main() {
    [[ $#:${1-} == 2:--marcot ]] || { sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
    MARCOT=$(realpath "$2")
    need_packages e2fsprogs xfsprogs fdisk python3
    claims_begin
    trap clean_up EXIT
    export MARCOT_STORE=$CLAIMS_SCRATCH/store MARCOT_RUN_DIR=$CLAIMS_SCRATCH/run MARCOT_DEV_DIR=$CLAIMS_SCRATCH/dev
    mkdir "$MARCOT_DEV_DIR" "$CLAIMS_SCRATCH/mnt" "$CLAIMS_SCRATCH/bin"
    ln -s "$MARCOT" "$CLAIMS_SCRATCH/bin/rbd"
    RBD=$CLAIMS_SCRATCH/bin/rbd
    "$MARCOT" create --size 64 plain
    "$MARCOT" pool create space
    "$MARCOT" namespace create space/inner
    "$MARCOT" create --size 8 space/inner/image
    "$MARCOT" snap create --no-progress space/inner/image@s
    private_directory
    planted_directory
    forged_record
    server_process
    unprinted_names
    names
    stale_names
    renamed
    sizes
    options
    quiesced
    as_rbd_nbd
    table_of_images
    claim "no device, name or mount is left" \
        test -z "$("$MARCOT" device list)$(ls "$MARCOT_DEV_DIR")$(grep "$CLAIMS_SCRATCH" /proc/mounts)"
    claim "check finds the pool in order" "$MARCOT" check rbd --no-progress
    claims_end
}

main "$@"
