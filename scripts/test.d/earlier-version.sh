#!/usr/bin/env bash
# A store that was written by the version before back ends: this version opens it, reads all of it and
# changes it.
#
# usage: earlier-version.sh --marcot BINARY
#
# The fixture was made by that version: a template with clones in its pool, in another pool and in a
# namespace, an image that was renamed, one that was flattened together with its snapshot into another
# pool, a removed snapshot that a clone of format 2 keeps, and a log that a killed server left. Beside
# the store lie the checksums of all images and snapshots, as that version read them.
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"
# shellcheck source=scripts/lib/commands.sh
. "$HERE/../lib/commands.sh"

FIXTURE=$HERE/fixtures/pool-before-back-ends.tar.xz

sum_of() (
    set -o pipefail
    marcot export --no-progress "$1" - | sha256sum | cut -d' ' -f1
)

# holds SPEC... : these have the bytes that the earlier version read.
holds() {
    local spec
    for spec in "$@"; do
        [[ $(sum_of "$spec") == "$(awk -v spec="$spec" '$2 == spec { print $1 }' sums)" ]] || {
            printf '#   %s differs\n' "$spec"
            return 1
        }
    done
}

all_hold() {
    local specs
    mapfile -t specs < <(awk '{ print $2 }' sums)
    ((${#specs[@]} == 8)) && holds "${specs[@]}"
}

# `check` also reads the head that still has a log, and changes nothing.
is_clean() {
    marcot check --all --no-progress >out 2>err && [[ $(grep -c 'all is well' out) == 2 ]]
}

children_are_told() {
    [[ $(marcot children --all golden | sort | tr '\n' ' ') == \
        'rbd/team/vm-3 rbd/trashy rbd/web-1 second/vm-2 ' ]] &&
        ! marcot snap unprotect golden@v1 2>err && grep -q 'web-1' err
}

# Makes snapshots and clones of what that version left, and flattens and unprotects them.
goes_on() {
    marcot snap create --no-progress web-1@new &&
        marcot snap protect web-1@new &&
        marcot clone web-1@new second/late &&
        [[ $(sum_of second/late) == "$(sum_of rbd/web-1)" ]] &&
        marcot flatten --no-progress second/late &&
        marcot snap unprotect web-1@new &&
        marcot flatten --no-progress second/vm-2 &&
        holds second/vm-2 second/flat second/flat@inner
}

# That version left no marks for flattened images that still refer to the template's data. The data stays
# all the same.
removals_take_nothing_from_others() {
    marcot rm --no-progress trashy && marcot rm --no-progress rbd/team/vm-3 &&
        marcot snap rm --no-progress web-1@new && marcot flatten --no-progress web-1 &&
        marcot snap unprotect golden@v1 && marcot snap rm --no-progress golden@v1 &&
        marcot rm --no-progress golden && marcot gc --no-progress >out &&
        holds rbd/web-1 second/vm-2 second/flat second/flat@inner && is_clean
}

commands_begin "$@"
tar -xJf "$FIXTURE"

claim "earlier version: check finds the store in order" is_clean
claim "earlier version: every image and snapshot has its bytes, the log of a killed server included" all_hold
claim "earlier version: its children are found" children_are_told
claim "earlier version: snapshots and clones of its images are made and flattened" goes_on
claim "earlier version: removals and gc take nothing that others need" removals_take_nothing_from_others
claims_end
