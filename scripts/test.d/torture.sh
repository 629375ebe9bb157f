#!/usr/bin/env bash
# The short form of scripts/torture: kills, power cuts, and proof that it finds what it looks for.
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

# What the disk swore to keep is gone: a run that does not notice proves nothing.
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
    claim "what breaks the promise of durability is told from what does not" judge_tested
    claim "$KILLS kills: nothing acknowledged is lost, no mix, clean without repair" survives --kills "$KILLS" --cuts 0
    claim "$CUTS power cuts: nothing flushed is lost, no gap, clean without repair" survives --kills 0 --cuts "$CUTS"
    claim "a disk that lies about flushes is found out" lie_is_found_out
    claims_end
}

main "$@"
