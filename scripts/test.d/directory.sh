#!/usr/bin/env bash
# A mounted directory of images (`rbd-fuse`): files have the names, sizes and content of images. What is written and
# synced is there, whatever becomes of the process. What others have open is not changed behind their backs.
#
# usage: directory.sh --marcot BINARY
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

# Longer than anything takes: only a hang reaches it.
WAIT_S=120

clean_up() {
    umount "$CLAIMS_SCRATCH/inner" 2>/dev/null || true
    umount -l "$FILES" 2>/dev/null || true
    claims_unmap_devices
    claims_clean
}

# eventually COMMAND... : it succeeds after a while. Closing a file is answered before its image is closed.
eventually() {
    local until=$((SECONDS + WAIT_S))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || return 1
        sleep 0.05
    done
}

is_mounted() {
    mountpoint -q "$FILES"
}

unmounted() {
    ! is_mounted
}

# same IMAGE FILE : the image's content, as `rbd export` gives it.
same() {
    "$RBD" export --no-progress "$1" - | cmp - "$2"
}

size_of() {
    stat -c %s "$FILES/$1"
}

noise() {
    head -c "$1" /dev/urandom
}

names_and_sizes() {
    claim "mount: an image is a file" test "$(ls "$FILES")" = "$(printf '%s\n' image odd)"
    claim "mount: the file has the image's exact size" test "$(size_of odd)" = 5000000
    claim "mount: the kernel shows the program as the type" grep -q " $FILES fuse.rbd-fuse " /proc/mounts
    claim "mount: what is there cannot be mounted over by mistake" not "$FUSE" "$FILES"
    claim "mount: other users cannot use it" not setpriv --reuid "$NOBODY" --clear-groups ls "$FILES"
    "$RBD" create --size 1 later
    claim "names: an image that is created appears" test -f "$FILES/later"
    mv "$FILES/later" "$FILES/moved"
    claim "names: renaming a file renames the image" test "$("$RBD" ls)" = "$(printf '%s\n' image moved odd)"
    claim "names: no image is replaced by renaming" not mv "$FILES/moved" "$FILES/odd"
    claim "names: ... with the words for that" refusal_says "File exists"
    rm "$FILES/moved"
    claim "names: removing a file removes the image" test "$("$RBD" ls)" = "$(printf '%s\n' image odd)"
    claim "names: a file that is not there" not cat "$FILES/nosuch"
    claim "names: there are no directories" not mkdir "$FILES/directory"
    claim "names: nor owners" not chown "$NOBODY" "$FILES/image"
}

content() {
    noise $((10 << 20)) >"$CLAIMS_SCRATCH/noise"
    claim "content: dd writes it" dd if="$CLAIMS_SCRATCH/noise" of="$FILES/image" bs=1M conv=notrunc,fsync status=none
    claim "content: export has it" same image "$CLAIMS_SCRATCH/noise"
    claim "content: so has the file" cmp "$FILES/image" "$CLAIMS_SCRATCH/noise"
    claim "content: holes, data and the end are where they are" python3 - "$FILES/image" "$FILES/odd" <<'PYTHON'
import os, sys

full, sparse = (os.open(path, os.O_RDWR) for path in sys.argv[1:])
end = os.fstat(full).st_size
assert os.lseek(full, 0, os.SEEK_DATA) == 0 and os.lseek(full, 0, os.SEEK_HOLE) == end
os.pwrite(sparse, b"x" * 4096, 1 << 20)
os.fsync(sparse)
assert os.lseek(sparse, 0, os.SEEK_DATA) == 1 << 20
assert os.lseek(sparse, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
try:
    os.lseek(sparse, 2 << 20, os.SEEK_DATA)
    raise SystemExit("there is no data behind it")
except OSError as error:
    assert error.errno == 6, error
assert os.pread(sparse, 100, 5000000) == b"" and len(os.pread(sparse, 100, 4999999)) == 1
PYTHON
    fallocate --punch-hole --offset 1MiB --length 1MiB "$FILES/image"
    dd if=/dev/zero of="$CLAIMS_SCRATCH/noise" bs=1M seek=1 count=1 conv=notrunc status=none
    claim "content: a hole can be punched" same image "$CLAIMS_SCRATCH/noise"
    printf 'hello' | dd of="$FILES/odd" bs=1 seek=6000001 conv=notrunc status=none
    claim "size: a write behind the end makes the image grow" test "$(size_of odd)" = 6000006
    claim "size: ... to exactly that" grep -q 6000006 <("$RBD" info --format json odd)
    claim "size: ... with what was written" test "$(tail -c 6 "$FILES/odd" | tr '\0' .)" = .hello
    truncate -s 3M "$FILES/odd"
    claim "size: truncate resizes" grep -q "size 3 MiB" <("$RBD" info odd)
    claim "size: a size that no image can have is refused" not truncate -s 8E "$FILES/odd"
}

new_files() {
    claim "new: a copied file is an image of 1 GiB, as with RBD" cp /etc/passwd "$FILES/new"
    claim "new: ... with one feature" grep -q "features: layering$" <("$RBD" info new)
    claim "new: ... that begins with the content" cmp -n "$(stat -c %s /etc/passwd)" /etc/passwd "$FILES/new"
    eventually rm "$FILES/new"
    claim "new: attributes of the directory say what new files are like" python3 - "$FILES" <<'PYTHON'
import os, sys

files = sys.argv[1]
assert os.getxattr(files, "user.rbdfuse.imagesize") == b"1073741824"
assert sorted(os.listxattr(files)) == [f"user.rbdfuse.image{what}" for what in ("features", "order", "size")]
os.setxattr(files, "user.rbdfuse.imagesize", b"0x300000")
os.setxattr(files, "user.rbdfuse.imageorder", b"20")
os.setxattr(files, "user.rbdfuse.imagefeatures", b"61")
bad = {"imagesize": b"many", "imageorder": b"40", "imagefeatures": b"4096", "other": b"1"}
for name, value in bad.items():
    try:
        os.setxattr(files, "user.rbdfuse." + name, value)
        raise SystemExit(f"{name} was set")
    except OSError as error:
        assert error.errno == 22, error
assert os.getxattr(files, "user.rbdfuse.imageorder") == b"20"
PYTHON
    touch "$FILES/new"
    claim "new: the next file is so" grep -q "size 3 MiB in 3 objects" <("$RBD" info new)
    claim "new: ... in all" grep -q "features: .*deep-flatten" <("$RBD" info new)
    "$RBD" snap create --no-progress new@s
    claim "remove: an image with snapshots is refused" not rm "$FILES/new"
    claim "remove: ... as RBD refuses it" refusal_says "Directory not empty"
    "$RBD" snap purge --no-progress new
    exec 5<>"$FILES/new"
    claim "remove: a file that is open is refused" not rm "$FILES/new"
    claim "remove: ... as busy" refusal_says "busy"
    claim "remove: ... and by commands" not "$MARCOT" rm --no-progress new
    claim "remove: ... which name the directory" refusal_says "directory $FILES"
    exec 5<&-
    claim "remove: a closed one is not" eventually rm "$FILES/new"
    claim "remove: it is gone" test ! -e "$FILES/new"
}

# The directory and commands, devices and locks of others.
others() {
    local device
    "$RBD" snap create --no-progress image@before
    exec 5<>"$FILES/image"
    printf 'changed' | dd of="$FILES/image" bs=1 conv=notrunc status=none
    claim "others: a snapshot is taken while the file is open" "$RBD" snap create --no-progress image@after
    claim "others: ... and the image rolled back" "$RBD" snap rollback --no-progress image@before
    claim "others: the open file shows that at once" cmp /dev/fd/5 "$CLAIMS_SCRATCH/noise"
    claim "others: a resize too" "$RBD" resize --no-progress --size 12 image
    claim "others: ... its size is right" test "$(size_of image)" = $((12 << 20))
    exec 5<&-
    "$RBD" resize --no-progress --allow-shrink --size 10 image
    eventually "$RBD" snap rm --no-progress image@after

    device=$("$MARCOT" device map image)
    claim "others: an image that a device shows is not written" \
        not dd if=/dev/zero of="$FILES/image" bs=4k count=1 conv=notrunc status=none
    claim "others: ... it is busy" refusal_says "busy"
    claim "others: ... nor removed" not rm "$FILES/image"
    claim "others: ... but read" cmp "$FILES/image" "$CLAIMS_SCRATCH/noise"
    printf 'by the device' | dd of="$device" bs=4k conv=notrunc,fsync status=none 2>/dev/null
    claim "others: ... as it is now" test "$(head -c 13 "$FILES/image")" = "by the device"
    "$MARCOT" device unmap "$device"
    dd if="$CLAIMS_SCRATCH/noise" of="$FILES/image" bs=4k count=1 conv=notrunc status=none
    eventually "$RBD" lock add image mine
    claim "others: an image that is locked is not written" not truncate -s 11M "$FILES/image"
    claim "others: ... but read" cmp "$FILES/image" "$CLAIMS_SCRATCH/noise"
    "$RBD" lock rm image mine "$("$RBD" lock ls image | awk 'END { print $1 }')"
}

clones() {
    "$RBD" snap protect image@before
    "$RBD" clone image@before clone
    cp "$CLAIMS_SCRATCH/noise" "$CLAIMS_SCRATCH/changed"
    printf 'of the clone' | tee >(dd of="$CLAIMS_SCRATCH/changed" bs=1 seek=5000 conv=notrunc status=none) |
        dd of="$FILES/clone" bs=1 seek=5000 conv=notrunc,fsync status=none
    claim "clone: it has what was written, and the rest of its parent" same clone "$CLAIMS_SCRATCH/changed"
    claim "clone: its parent is as it was" same image "$CLAIMS_SCRATCH/noise"
    eventually rm "$FILES/clone"
    "$RBD" snap unprotect image@before
    "$RBD" snap purge --no-progress image
}

# A file system in a file, by a loop device.
file_system() {
    mkdir "$CLAIMS_SCRATCH/inner"
    "$RBD" create --size 64 disk
    mkfs.ext4 -q -F "$FILES/disk"
    mount -o loop "$FILES/disk" "$CLAIMS_SCRATCH/inner"
    cp "$CLAIMS_SCRATCH/noise" "$CLAIMS_SCRATCH/inner/file"
    umount "$CLAIMS_SCRATCH/inner"
    "$RBD" export --no-progress disk "$CLAIMS_SCRATCH/disk"
    claim "file system: it is clean in the export" e2fsck -fn "$CLAIMS_SCRATCH/disk" >/dev/null 2>&1
    mount -o loop,ro "$CLAIMS_SCRATCH/disk" "$CLAIMS_SCRATCH/inner"
    claim "file system: its files are right" cmp "$CLAIMS_SCRATCH/inner/file" "$CLAIMS_SCRATCH/noise"
    umount "$CLAIMS_SCRATCH/inner"
    claim "file system: the image is free again" eventually rm "$FILES/disk"
}

# Several writers, each with an image of its own and one that they share.
side_by_side() {
    local number pids=()
    "$RBD" create --size 8 shared
    for number in 1 2 3 4; do
        "$RBD" create --size 2 "own$number"
        noise $((2 << 20)) >"$CLAIMS_SCRATCH/own$number"
        {
            dd if="$CLAIMS_SCRATCH/own$number" of="$FILES/own$number" bs=64k conv=notrunc status=none
            dd if="$CLAIMS_SCRATCH/own$number" of="$FILES/shared" bs=64k seek=$((32 * number - 32)) \
                conv=notrunc,fsync status=none
        } &
        pids+=("$!")
    done
    wait "${pids[@]}"
    for number in 1 2 3 4; do
        claim "side by side: image $number has what its writer wrote" same "own$number" "$CLAIMS_SCRATCH/own$number"
    done
    claim "side by side: the shared one has all parts" same shared <(cat "$CLAIMS_SCRATCH"/own[1-4])
    for number in own1 own2 own3 own4 shared; do eventually rm "$FILES/$number"; done
}

one_image_and_namespaces() {
    umount "$FILES"
    "$FUSE" -r odd "$FILES"
    claim "one image: only it is shown" test "$(ls "$FILES")" = odd
    claim "one image: no other is made" not touch "$FILES/new"
    claim "one image: ... nor found" not cat "$FILES/image"
    umount "$FILES"
    "$FUSE" -p space -s inner "$FILES"
    noise 100000 >"$FILES/image"
    claim "namespace: its images are shown" test "$(ls "$FILES")" = image
    claim "namespace: content is theirs" cmp "$FILES/image" <("$RBD" export --no-progress space/inner/image -)
    umount "$FILES"
    "$FUSE" -o ro "$FILES"
    claim "read-only: nothing is written" not touch "$FILES/new"
    claim "read-only: ... but read" cmp "$FILES/image" "$CLAIMS_SCRATCH/noise"
    umount "$FILES"
}

# The process ends, in order and by force.
ends() {
    local served
    start_owned "$FUSE" -f "$FILES" 2>>"$CLAIMS_SCRATCH/log"
    served=$!
    eventually is_mounted
    exec 5<>"$FILES/image"
    printf 'not synced' >&5
    kill "$served"
    wait "$served" || true
    disown_ended "$served"
    claim "end: SIGTERM unmounts, though a file is open" unmounted
    claim "end: ... and nothing that was written is lost" \
        test "$("$RBD" export --no-progress image - 2>/dev/null | head -c 10)" = "not synced"
    exec 5<&-
    dd if="$CLAIMS_SCRATCH/noise" of="$CLAIMS_SCRATCH/copy" bs=1M status=none
    start_expendable "$FUSE" -f "$FILES" 2>>"$CLAIMS_SCRATCH/log"
    served=$!
    eventually is_mounted
    noise 300000 | tee >(dd of="$CLAIMS_SCRATCH/copy" conv=notrunc status=none) |
        dd of="$FILES/image" conv=notrunc,fsync status=none
    exec 5<>"$FILES/image"
    kill -KILL "$served"
    wait "$served" 2>/dev/null || true
    claim "end: a killed process leaves a mount that says so" not ls "$FILES"
    exec 5<&- || true
    claim "end: it is not mounted over" not "$FUSE" "$FILES"
    claim "end: ... with the remedy" refusal_says "unmount it first"
    umount "$FILES"
    claim "end: what was synced is there" same image "$CLAIMS_SCRATCH/copy"
    claim "end: it can be mounted again" "$FUSE" "$FILES"
    claim "end: ... and read" cmp "$FILES/image" "$CLAIMS_SCRATCH/copy"
    umount "$FILES"
    claim "end: the pool is as it should be" "$MARCOT" check --no-progress
}

main() {
    [[ $#:${1-} == 2:--marcot ]] || { sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
    MARCOT=$(realpath "$2")
    NOBODY=65534
    need_packages e2fsprogs python3
    claims_begin
    FILES=$CLAIMS_SCRATCH/files
    trap clean_up EXIT
    export MARCOT_STORE=$CLAIMS_SCRATCH/store MARCOT_RUN_DIR=$CLAIMS_SCRATCH/run MARCOT_DEV_DIR=$CLAIMS_SCRATCH/dev
    mkdir "$FILES" "$MARCOT_DEV_DIR" "$CLAIMS_SCRATCH/bin"
    RBD=$CLAIMS_SCRATCH/bin/rbd
    FUSE=$CLAIMS_SCRATCH/bin/rbd-fuse
    ln -s "$MARCOT" "$RBD"
    ln -s "$MARCOT" "$FUSE"
    "$RBD" create --size 10 image
    "$RBD" create --size 5000000B odd
    "$MARCOT" pool create space
    "$RBD" namespace create space/inner
    "$RBD" create --size 1 space/inner/image
    "$FUSE" "$FILES"
    names_and_sizes
    content
    new_files
    others
    clones
    file_system
    side_by_side
    one_image_and_namespaces
    ends
    claims_end
}

main "$@"
