#!/usr/bin/env bash
# Trouble with images in use: the disk becomes full and has room again; a block, a map page or a head is
# damaged. All that is not affected goes on without being opened again.
#
# usage: survival.sh --marcot BINARY
#
# environment: KEEP=yes (keep a failed run's files)
#
# For a server that is killed below a mounted file system, see kernel-nbd-guest.sh and mapped-filesystems.sh.
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

MIB=1048576
# mkfs.xfs refuses disks below 300 MiB.
DISK_MIB=320
EIO=5
ENOSPC=28

# --- one connection for many requests --------------------------------------------------------------------

# connect SOCKET EXPORT : starts a client that stays connected; `answers` sends it requests.
connect() {
    coproc ASK { exec "$HERE/../lib/nbd-ask" "$1" "$2"; }
    own "$ASK_PID"
}

disconnect() {
    local pid=$ASK_PID
    eval "exec ${ASK[1]}>&-"
    wait "$pid"
    disown_ended "$pid"
}

# answers EXPECTED REQUEST... : sends the request; its answer is as expected.
answers() {
    local expected=$1 answer
    shift
    printf '%s\n' "$*" >&"${ASK[1]}"
    read -r answer <&"${ASK[0]}" || answer="nothing"
    [[ $answer == "$expected" ]] && return 0
    printf '#   %s: %s, should be %s\n' "$*" "$answer" "$expected"
    return 1
}

# --- a full disk --------------------------------------------------------------------------------------

# Writes until there is no room for the smallest write. Sets $WRITTEN to the end of what it wrote.
fill_through_image() {
    local length=$MIB answer
    WRITTEN=$((64 * MIB))
    while ((length >= 4096)); do
        printf 'write 4 %d %d\n' "$WRITTEN" "$length" >&"${ASK[1]}"
        read -r answer <&"${ASK[0]}"
        case $answer in
        ok) WRITTEN=$((WRITTEN + length)) ;;
        "$ENOSPC") length=$((length / 2)) ;;
        *) printf '#   a write ends with %s\n' "$answer" && return 1 ;;
        esac
    done
}

# text WORD SIZE : prints the word repeatedly, SIZE bytes in all. `yes` fails when `head` closes the pipe, and
# that is no failure here.
text() {
    { yes "$1" || true; } 2>/dev/null | head -c "$2"
}

full_disk() {
    local fs=$1 disk=$CLAIMS_SCRATCH/$1 socket=$CLAIMS_SCRATCH/$1.sock image=$CLAIMS_SCRATCH/$1.raw
    mkdir "$disk"
    truncate -s "${DISK_MIB}M" "$image"
    if [[ $fs == ext4 ]]; then mkfs.ext4 -q -F "$image"; else mkfs.xfs -q -f "$image"; fi
    mount -o loop "$image" "$disk"
    export MARCOT_STORE=$disk/store
    marcot create disk --size 1G
    text old 16M | marcot import --no-progress - old
    text other 1M | marcot import --no-progress - other
    local other
    other=$(content other)
    serve "$socket"
    connect "$socket" rbd/disk
    answers ok write 1 0 $((16 * MIB)) && answers ok flush
    marcot snap create --no-progress disk@s
    answers ok write 2 0 $((16 * MIB)) && answers ok flush
    claim "$fs full: writes get ENOSPC, down to the smallest" fill_through_image
    claim "$fs full: flushes work" answers ok flush
    claim "$fs full: what was written last can be read" answers ok read 4 $((WRITTEN - 4096)) 4096
    claim "$fs full: what was written first can be read" answers ok read 2 0 $((16 * MIB))
    claim "$fs full: writes are still refused" answers $ENOSPC write 5 0 $MIB
    claim "$fs full: a refused write leaves the bytes as they were" answers ok read 2 0 $MIB
    claim "$fs full: other images can be read" holds other "$other"
    claim "$fs full: a snapshot of the image in use can be removed" does marcot snap rm --no-progress disk@s
    claim "$fs full: the space of the snapshot can be written" answers ok write 8 $((48 * MIB)) $((8 * MIB))
    claim "$fs full: an image that nobody uses can be removed" does marcot rm --no-progress old
    claim "$fs: with room again, the same connection can write" answers ok write 6 $((32 * MIB)) $MIB
    claim "$fs: with room again, it can flush" answers ok flush
    claim "$fs: with room again, it reads what it wrote" answers ok read 6 $((32 * MIB)) $MIB
    claim "$fs: the space of snapshot and image can be written" answers ok write 7 $((40 * MIB)) $((8 * MIB))
    claim "$fs: nothing written before is lost" answers ok read 4 $((WRITTEN - 4096)) 4096
    disconnect
    claim "$fs: the server ends in good order" stop_serving "$SERVER"
    claim "$fs: the pool is in order" sound rbd
    umount "$disk"
    rm "$image"
    export MARCOT_STORE=$CLAIMS_SCRATCH/store
}

# --- damage -------------------------------------------------------------------------------------------

# flip FILE OFFSET : changes one byte of the file in place.
flip() {
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059 # the byte is the format
    printf "\\x$(printf '%02x' $((byte ^ 64)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

number_of() {
    marcot info "$1" --format json | jq -r .id
}

# Makes a template, its snapshot and three clones, one of them in another pool. The image `healed` is meant
# to overwrite the block that is damaged later.
# NAMING lists the images and snapshots that refer to that block.
make_family() {
    rm -rf "$MARCOT_STORE"
    marcot pool create other
    marcot create rbd/template --size 64M
    SOCKET=$CLAIMS_SCRATCH/family.sock
    serve "$SOCKET"
    io "$(uri "$SOCKET" rbd/template)" "write -P 1 0 8M" "write -P 177 8M 64k" "write -P 2 20M 8M" flush
    marcot snap create --no-progress rbd/template@s
    marcot snap protect rbd/template@s
    marcot clone rbd/template@s rbd/clone
    marcot clone rbd/template@s rbd/healed
    marcot clone rbd/template@s other/clone
    NAMING=(rbd/template rbd/template@s rbd/clone other/clone)
    SEGMENTS=$MARCOT_STORE/pools/rbd/segments/$(number_of rbd/template)
}

# Finds where the bytes 177 are in the template's data segment. No other data has that byte.
find_block() {
    DATA=$SEGMENTS/d00000001
    AT=$(LC_ALL=C grep -obUaP '\xb1{4096}' "$DATA" | head -n 1 | cut -d : -f 1)
    [[ -n $AT ]]
}

only_the_block_is_lost() {
    local spec
    for spec in "${NAMING[@]}"; do
        io_fails "Input/output error" -r "$(uri "$SOCKET" "$spec")" "read 8196k 4k" || return 1
        io_fails "Input/output error" -r "$(uri "$SOCKET" "$spec")" "read 8M 64k" || return 1
        io -r "$(uri "$SOCKET" "$spec")" "read -P 1 0 8M" "read -P 177 8M 4k" "read -P 177 8200k 56k" \
            "read -P 2 20M 8M" || return 1
    done
}

# logged IMAGE : the server's log names block 2049 of the image, which begins at 8196 KiB.
logged() {
    grep -qE "block 2049 of $1 \(segment [0-9a-f]{16}/d00000001, slot $(((AT + 4096) / 4096))\)" "$CLAIMS_SCRATCH/server.err"
}

all_logged() {
    local spec
    for spec in "${NAMING[@]}"; do logged "$spec" || return 1; done
}

# check_names TEXT IMAGE... : check reports TEXT for exactly these images and snapshots.
check_names() {
    local text=$1 expected found status=0
    shift
    marcot check --all --no-progress --format json >"$CLAIMS_SCRATCH/checked" 2>"$CLAIMS_SCRATCH/err" || status=$?
    expected=$(printf '%s\n' "$@" | sort)
    found=$(jq -r ".[].findings[] | select(.message | contains(\"$text\")) | .image" "$CLAIMS_SCRATCH/checked" | sort)
    [[ $status == "$EIO" && $found == "$expected" ]] && return 0
    printf '#   check: status %d\n' "$status" && sed 's/^/#   /' "$CLAIMS_SCRATCH/checked"
    return 1
}

damaged_block() {
    make_family
    io "$(uri "$SOCKET" rbd/healed)" "write -P 3 8196k 4k" flush
    # `check` reads the head from its file. A server may write the current head there only when it closes.
    claim "the server ends in good order" stop_serving "$SERVER"
    serve "$SOCKET"
    claim "the block to damage is found" find_block
    connect "$SOCKET" rbd/clone
    claim "before the damage: the connection reads the block" answers ok read 177 $((8 * MIB)) 65536
    flip "$DATA" $((AT + 4096 + 1000))
    claim "a damaged block: the connection gets EIO for it" answers $EIO read 177 $((8196 * 1024)) 4096
    claim "a damaged block: its neighbours are read as before" answers ok read 177 $((8200 * 1024)) 57344
    claim "a damaged block: the images that share it lose nothing else" only_the_block_is_lost
    claim "a damaged block: an image that overwrote it before is whole" io "$(uri "$SOCKET" rbd/healed)" "read -P 3 8196k 4k"
    claim "a damaged block: the log names image, block, segment and slot" all_logged
    claim "a damaged block: check lists every image and snapshot that names it" \
        check_names "bytes 8392704 to 8396800 are damaged" "${NAMING[@]}"
    claim "a damaged block: a write to a part of it is refused, since the rest is unknown" \
        answers $EIO write 9 $((8196 * 1024)) 512
    claim "a damaged block: a write to all of it succeeds" answers ok write 9 $((8196 * 1024)) 4096
    claim "a damaged block: after that it can be read" answers ok read 9 $((8196 * 1024)) 4096
    disconnect
    marcot check --all --repair --no-progress >/dev/null 2>&1 || true
    claim "a damaged block: repair invents nothing and loses nothing more" reads_as_damaged
    claim "a damaged block: the server ends in good order" stop_serving "$SERVER"
    claim "a damaged block: check no longer lists the image that overwrote it" \
        check_names "are damaged" rbd/template rbd/template@s other/clone
}

reads_as_damaged() {
    NAMING=(rbd/template rbd/template@s other/clone)
    only_the_block_is_lost
}

# Damages the first page after the header of the map segment: the leaf of the first 2 MiB.
damaged_page() {
    local spec
    make_family
    claim "the server ends in good order" stop_serving "$SERVER"
    flip "$SEGMENTS/m00000001" 4200
    claim "a damaged map page: check lists every image and snapshot that needs it" \
        check_names "bytes 0 to 2097152 cannot be read" rbd/template rbd/template@s rbd/clone rbd/healed other/clone
    serve "$SOCKET"
    for spec in rbd/template rbd/template@s other/clone; do
        claim "a damaged map page, $spec: its 2 MiB are errors" \
            io_fails "Input/output error" -r "$(uri "$SOCKET" "$spec")" "read 1M 4k"
        claim "a damaged map page, $spec: all else can be read" io -r "$(uri "$SOCKET" "$spec")" \
            "read -P 1 2M 6M" "read -P 177 8M 64k" "read -P 2 20M 8M"
    done
    claim "a damaged map page: its range cannot be written" \
        io_fails "Input/output error" "$(uri "$SOCKET" rbd/clone)" "write -P 8 1M 4k"
    claim "a damaged map page: other ranges can be written" io "$(uri "$SOCKET" rbd/clone)" "write -P 8 2M 4k" flush "read -P 8 2M 4k"
    claim "a damaged map page: a discard of the 2 MiB makes them usable" io "$(uri "$SOCKET" rbd/clone)" \
        "discard 0 2M" "write -P 8 1M 4k" flush "read -P 8 1M 4k" "read -P 0 0 1M"
    claim "a damaged map page: the server ends in good order" stop_serving "$SERVER"
    claim "a damaged map page: check no longer lists that image" \
        check_names "cannot be read" rbd/template rbd/template@s rbd/healed other/clone
}

# An image without its head is lost. No other image may be.
damaged_head() {
    local head
    make_family
    claim "the server ends in good order" stop_serving "$SERVER"
    head=$MARCOT_STORE/pools/rbd/images/$(number_of rbd/clone)/head
    cp -a "$head" "$CLAIMS_SCRATCH/head"
    flip "$head" 100
    serve "$SOCKET"
    claim "a damaged head: the image cannot be opened, and the file is named" \
        refuses 5 "marcot: *$head*" marcot export --no-progress rbd/clone "$CLAIMS_SCRATCH/exported"
    claim "a damaged head: the image is not served" io_fails "" -r "$(uri "$SOCKET" rbd/clone)" "read 0 4k"
    claim "a damaged head: all others can be read and written" io "$(uri "$SOCKET" rbd/healed)" \
        "read -P 1 0 8M" "write -P 5 0 1M" flush "read -P 5 0 1M"
    claim "a damaged head: another image can be cloned" does marcot clone rbd/template@s rbd/late
    claim "a damaged head: check fails" refuses 5 "*" marcot check --no-progress rbd
    claim "a damaged head: check names the file" grep -q "$head" "$CLAIMS_SCRATCH/out"
    claim "a damaged head: it might be a child of any snapshot, so unprotect is refused" \
        refuses 5 "marcot: *$head*" marcot snap unprotect rbd/template@s
    claim "a damaged head: gc frees nothing, and says why" refuses 5 "marcot: *nothing is freed*" marcot gc --no-progress rbd
    cp -a "$CLAIMS_SCRATCH/head" "$head"
    claim "a damaged head: with the file restored from a backup, all is well" \
        io "$(uri "$SOCKET" rbd/clone)" "read -P 1 0 8M" "read -P 2 20M 8M"
    claim "a damaged head: the server ends in good order" stop_serving "$SERVER"
    claim "a damaged head: the pool is in order" sound rbd other
}

main() {
    need_packages qemu-utils e2fsprogs xfsprogs jq python3
    commands_begin "$@"
    export MARCOT_LOG=error
    full_disk ext4
    full_disk xfs
    damaged_block
    damaged_page
    damaged_head
    claims_end
}

main "$@"
