#!/usr/bin/env bash
# marcot, called as `rbd`, prints and returns what Ceph's `rbd` did when scripts/oracle recorded it.
#
# usage: rbd-replay.sh --marcot BINARY
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$HERE/../lib/packages.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

a_program_that_does_nothing_is_found_out() {
    local status=0
    "$HERE/../oracle" replay --marcot "$(type -P true)" snap >/dev/null || status=$?
    ((status == 1))
}

main() {
    [[ ${1:-} == --marcot && -n ${2:-} ]] || { printf 'usage: rbd-replay.sh --marcot BINARY\n' >&2 && exit 2; }
    need_packages python3 qemu-utils
    claims_begin
    claim 'a program that prints nothing fails the cases' a_program_that_does_nothing_is_found_out
    # Prints a claim for each file of cases.
    "$HERE/../oracle" replay --marcot "$2" || CLAIMS_BROKEN=1
    claims_end
}

main "$@"
