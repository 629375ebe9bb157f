#!/usr/bin/env bash
# What a command costs when there are many images, clones and snapshots. A command on one image opens the
# same number of files among thousands of images as among ten. A list opens no more files for each entry.
# Nothing here measures time.
#
# usage: costs.sh --marcot BINARY
#
# environment: MARCOT_TEST_IMAGES (how many images the largest pool has, default 4000)
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

SIZES=(10 1000 "${MARCOT_TEST_IMAGES:-4000}")
# With this many snapshots, one more can still be added.
SNAPSHOTS_MAX=9990
# How many more files a list may open.
LIST_SLACK_PERCENT=5
# How many more files a command may open once, when it finds a lock held for a moment.
ONE_SLACK=4
# Memory of `ls -l` for each row, without the page cache and the program itself.
ROW_KIB_MAX=6

# fill SIZE : makes a store whose pool has a template with SIZE clones and an image with SIZE snapshots.
fill() {
    local pool=$CLAIMS_SCRATCH/store-$1/pools/rbd snapshots=$(($1 < SNAPSHOTS_MAX ? $1 : SNAPSHOTS_MAX))
    export MARCOT_STORE=$CLAIMS_SCRATCH/store-$1
    # After an import, the name of an image differs from the name in its head.
    if [[ ! -e $CLAIMS_SCRATCH/raw ]]; then
        head -c 100000 /dev/urandom >"$CLAIMS_SCRATCH/raw"
        # The import of a file that was changed a moment ago cannot be continued, and so opens fewer files.
        sleep 3
    fi
    marcot import --no-progress "$CLAIMS_SCRATCH/raw" template
    marcot snap create --no-progress template@s
    marcot snap protect template@s
    marcot clone template@s clone
    python3 "$HERE/../lib/big_pool.py" "$pool" clones clone "$1"
    marcot import --no-progress "$CLAIMS_SCRATCH/raw" many
    python3 "$HERE/../lib/big_pool.py" "$pool" snapshots many "$snapshots"
    marcot snap create --no-progress many@last
}

# opens STATUS ARGUMENT... : sets $OPENS to the number of files that the command opens or looks for. Fails if
# the command's exit status is not STATUS.
opens() {
    local want=$1 status=0
    shift
    strace -f --seccomp-bpf -qq -e trace=open,openat,openat2,creat -o "$CLAIMS_SCRATCH/calls" \
        "$MARCOT" "$@" >"$CLAIMS_SCRATCH/out" 2>"$CLAIMS_SCRATCH/err" </dev/null || status=$?
    OPENS=$(wc -l <"$CLAIMS_SCRATCH/calls")
    ((status == want)) && return 0
    commands_show "$@"
    printf '#   exit status %d, should be %d\n' "$status" "$want"
    return 1
}

# one STATUS ARGUMENT... : notes how many files a command on one image opens.
one() {
    if ! opens "$@"; then claim "${*:2}: works in a pool of $SIZE" false; fi
    COUNTS["one $*"]+=" $OPENS"
}

# reads ARGUMENT... : notes how many KiB a command on the whole pool reads.
reads() {
    strace -f --seccomp-bpf -qq -e trace=read,pread64,preadv2 -o "$CLAIMS_SCRATCH/calls" \
        "$MARCOT" "$@" >"$CLAIMS_SCRATCH/out" </dev/null || claim "$*: works in a pool of $SIZE" false
    COUNTS["reads $*"]+=" $(awk '$NF > 0 { bytes += $NF } END { print int(bytes / 1024) }' "$CLAIMS_SCRATCH/calls")"
}

# list ARGUMENT... : notes how many files a list opens.
list() {
    if ! opens 0 "$@"; then claim "$*: works in a pool of $SIZE" false; fi
    COUNTS["list $*"]+=" $OPENS"
}

commands_on_one() {
    local raw=$CLAIMS_SCRATCH/raw no=--no-progress
    one 0 create new --size 1G
    one 0 rm $no new
    one 0 import $no "$raw" imported
    one 0 rm $no imported
    one 0 clone template@s another
    one 0 clone --rbd-default-clone-format 2 template@s second
    one 0 rm $no second
    one 0 info another
    one 0 info clone-5
    one 0 info template
    one 0 info template@s
    one 0 info many
    one 0 info many@s-5
    one 0 snap ls clone-5
    one 0 snap ls template
    one 0 snap ls many
    one 0 status clone-5
    one 0 status many
    one 0 du clone-5
    one 0 children clone-5
    one 0 children many@s-5
    one 0 rename another renamed
    one 0 info renamed
    one 0 snap create $no renamed@t
    one 0 snap rename renamed@t renamed@u
    one 0 snap protect renamed@u
    one 0 snap unprotect renamed@u
    one 0 snap rollback $no renamed@u
    one 0 snap rm $no renamed@u
    one 0 resize $no renamed --size 1M
    one 0 diff renamed
    one 0 export $no renamed "$CLAIMS_SCRATCH/exported"
    rm "$CLAIMS_SCRATCH/exported"
    one 0 cp $no renamed copied
    one 0 rm $no copied
    one 0 flatten $no renamed
    one 0 snap purge $no renamed
    one 0 rm $no clone-6
    one 16 snap unprotect template@s
    one 16 snap rm $no template@s
    one 39 rm $no template
    one 39 rm $no many
    one 0 snap create $no many@more
    one 0 snap rename many@more many@most
    one 0 snap protect many@most
    one 0 clone many@most clone-of-many
    one 0 info clone-of-many
    one 0 rm $no clone-of-many
    one 0 snap unprotect many@most
    one 0 snap rm $no many@most
    one 0 export $no many@s-5 "$CLAIMS_SCRATCH/exported"
    rm "$CLAIMS_SCRATCH/exported"
    one 0 diff many@s-6 --from-snap s-5
    one 0 export-diff $no --from-snap s-5 many@s-6 "$CLAIMS_SCRATCH/exported"
    rm "$CLAIMS_SCRATCH/exported"
    one 0 resize $no many --size 1M
    one 0 namespace create rbd/part
    one 0 create rbd/part/image --size 1M
    one 0 rm $no rbd/part/image
    one 0 namespace ls
    one 0 namespace rm rbd/part
    one 0 pool create second
    one 0 clone template@s second/clone
    one 0 info second/clone
    one 0 rm $no second/clone
    one 0 pool rm second
    one 0 pool ls
    one 0 device list
    golden_images
    one_by_id "$(marcot info --format json clone-5 | jq -r .id)"
}

# Removes images whose data was shared. After that, nothing refers to the data of the first one, and a
# flattened clone refers to the data of the second one.
golden_images() {
    local no=--no-progress image
    for image in golden gilded; do
        one 0 import $no "$CLAIMS_SCRATCH/raw" $image
        one 0 snap create $no $image@s
        one 0 snap protect $image@s
        one 0 clone $image@s $image-clone
    done
    one 0 rm $no golden-clone
    one 0 flatten $no gilded-clone
    for image in golden gilded; do
        one 0 snap unprotect $image@s
        one 0 snap rm $no $image@s
        one 0 rm $no $image
    done
    one 0 rm $no gilded-clone
}

# Counted under a name without the number, since the image's number differs from pool to pool.
one_by_id() {
    if ! opens 0 info --image-id "$1"; then claim "info --image-id: works in a pool of $SIZE" false; fi
    COUNTS["one 0 info --image-id"]+=" $OPENS"
}

lists() {
    list ls
    list ls -l
    list du
    list du many
    list children template
    list children --descendants template
    list pool stats
    list check --no-progress
    reads check --no-progress
    list gc --no-progress
}

# unchanged COUNT... : a command costs among thousands what it costs among ten.
unchanged() {
    (($2 <= $1 + ONE_SLACK && $3 <= $1 + ONE_SLACK))
}

# no_worse COUNT... : one more entry costs no more in the largest pool than among a thousand.
no_worse() {
    local small=$((SIZES[1] - SIZES[0])) large=$((SIZES[2] - SIZES[0]))
    (($3 - $1 <= ($2 - $1) * large * (100 + LIST_SLACK_PERCENT) / small / 100 + 100))
}

# rss_kib ARGUMENT... : prints the largest resident memory of the command, in KiB.
rss_kib() {
    python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)' "$MARCOT" "$@"
}

# memory ARGUMENT... : one more row costs the command no more than ROW_KIB_MAX.
memory() {
    local few many rows=$((SIZES[2] - SIZES[1]))
    few=$(MARCOT_STORE=$CLAIMS_SCRATCH/store-${SIZES[1]} rss_kib "$@")
    many=$(MARCOT_STORE=$CLAIMS_SCRATCH/store-${SIZES[2]} rss_kib "$@")
    printf '#   %s: %d KiB of memory, and %d\n' "$*" "$few" "$many"
    # Each entry adds two rows: an image and a snapshot.
    ((many - few <= 2 * rows * ROW_KIB_MAX))
}

main() {
    need_packages strace python3 jq
    commands_begin "$@"
    declare -gA COUNTS=()
    for SIZE in "${SIZES[@]}"; do
        fill "$SIZE"
        commands_on_one
        lists
    done
    local command counts
    while IFS= read -r command; do
        read -ra counts <<<"${COUNTS[$command]}"
        case $command in
        one*) claim "${command#one * }: opens as many files among many images as among few (${counts[*]})" unchanged "${counts[@]}" ;;
        list*) claim "${command#list }: opens no more files for an entry among many (${counts[*]})" no_worse "${counts[@]}" ;;
        reads*) claim "${command#reads }: reads no more for an entry among many (${counts[*]} KiB)" no_worse "${counts[@]}" ;;
        esac
    done < <(printf '%s\n' "${!COUNTS[@]}" | sort)
    claim "ls -l: at most $ROW_KIB_MAX KiB of memory for a row" memory ls -l
    claim "ls -l --format json: at most $ROW_KIB_MAX KiB of memory for a row" memory ls -l --format json
    claim "du: at most $ROW_KIB_MAX KiB of memory for a row" memory du
    claim "check: at most $ROW_KIB_MAX KiB of memory for an image or snapshot" memory check --no-progress
    claims_end
}

main "$@"
