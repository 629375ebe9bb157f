#!/usr/bin/env bash
# A short run of scripts/torture: kills, power cuts, and proof that it finds lost data.
#
# usage: torture.sh --marcot BINARY
#
# environment: MARCOT_TEST_SEED (default: random, printed), KEEP=yes (keep a failed run's files)
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

KILLS=10
CUTS=3
SEED=${MARCOT_TEST_SEED:-$RANDOM}

judge_tested() {
    PYTHONPATH=$HERE/../lib PYTHONDONTWRITEBYTECODE=1 python3 -m torture.selftest >"$CLAIMS_SCRATCH/judge" 2>&1 && return 0
    cat "$CLAIMS_SCRATCH/judge"
    return 1
}

survives() {
    "$HERE/../torture" --marcot "$MARCOT" --seed "$SEED" "$@"
}

# The disk loses data that it has acknowledged a flush for. A run that does not notice this proves nothing.
lie_is_found_out() {
    if survives --kills 0 --cuts 10 --lying-disk >"$CLAIMS_SCRATCH/lie" 2>&1; then
        cat "$CLAIMS_SCRATCH/lie"
        return 1
    fi
    grep -q "^seed .*; kept: " "$CLAIMS_SCRATCH/lie" && return 0
    cat "$CLAIMS_SCRATCH/lie"
    return 1
}

main() {
    [[ $#:${1-} == 2:--marcot ]] || { sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
    MARCOT=$(realpath "$2")
    claims_begin
    export TMPDIR=$CLAIMS_SCRATCH
    claim "the judge tells broken promises of durability from kept ones" judge_tested
    claim "$KILLS kills: no acknowledged write is lost, no block is mixed, check needs no repair" survives --kills "$KILLS" --cuts 0
    claim "$CUTS power cuts: no flushed write is lost, no gap, check needs no repair" survives --kills 0 --cuts "$CUTS"
    claim "a disk that lies about flushes is found out" lie_is_found_out
    claims_end
}

main "$@"
