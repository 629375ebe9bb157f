#!/usr/bin/env bash
# Pools in buckets of real object stores: the session of the README, random operations, kills and lost hosts, wrong
# credentials and places; on radosgw and Azurite also two hosts that change the same records at once.
#
# usage: services.sh --marcot BINARY [SERVICE...]
#
# SERVICE is moto, azurite or radosgw (see scripts/lib/services.sh). Without one, a short run on moto.
#
# environment: MARCOT_TEST_SEED (default: random, printed), KEEP=yes (keep a failed run's files)
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
# shellcheck source=scripts/lib/services.sh
. "$HERE/../lib/services.sh"

SEED=${MARCOT_TEST_SEED:-$RANDOM}
# Ends of the server with flush=remote, and with flush=local; whether guests boot in the session.
SHORT=(5 3 --no-guests)
LONG=(40 20)

# shown COMMAND... : its output is shown where it fails.
shown() {
    "$@" >"$CLAIMS_SCRATCH/shown" 2>&1 </dev/null && return 0
    sed 's/^/#   /' "$CLAIMS_SCRATCH/shown"
    return 1
}

session() {
    shown "$HERE/../quickstart" --binary "$MARCOT" --backend "$SERVICE_BUCKET_URL/session" --endpoint "$SERVICE_ENDPOINT" "$@"
}

# survives ENDS FLUSH PREFIX OPTION... : random operations, and ENDS ends of the server or the host.
survives() {
    local ends=$1 flush=$2 prefix=$3
    shift 3
    shown "$HERE/../torture" --marcot "$MARCOT" --seed "$SEED" --kills "$ends" --flush "$flush" \
        --backend "$SERVICE_BUCKET_URL/$prefix" --endpoint "$SERVICE_ENDPOINT" "$@"
}

# The flushes lie. A run that does not notice this proves nothing.
lie_is_found_out() {
    if survives 15 remote lie --lying-flush >"$CLAIMS_SCRATCH/lie"; then
        printf '#   it was not noticed\n'
        return 1
    fi
    grep -q "should be of write" "$CLAIMS_SCRATCH/lie" && return 0
    cat "$CLAIMS_SCRATCH/lie"
    return 1
}

two_hosts() {
    shown "$HERE/../lib/contention" --marcot "$MARCOT" --directory "$CLAIMS_SCRATCH/contention" \
        --backend "$SERVICE_BUCKET_URL/contention" --endpoint "$SERVICE_ENDPOINT"
}

# on_service KIND ENDS-REMOTE ENDS-LOCAL SESSION-OPTION...
on_service() {
    local kind=$1 remote=$2 local=$3
    shift 3
    claim "$kind starts" service_start "$kind" images
    [[ -n $SERVICE_BUCKET_URL ]] || return 0
    printf '# %s, seed %s\n' "$SERVICE_NAME" "$SEED"
    claim "$kind: the session of the README, with the templates in a bucket" session "$@"
    claim "$kind: $remote ends of servers and hosts with flush=remote: what was flushed is there, check is clean" \
        survives "$remote" remote remote
    claim "$kind: $local ends of servers with flush=local: what was acknowledged is there, check is clean" \
        survives "$local" local local
    # moto compares and stores without a lock.
    [[ $kind == moto ]] ||
        claim "$kind: two hosts change the same records, and nothing is lost or done twice" two_hosts
    if [[ $kind == moto ]] && ((remote >= LONG[0])); then
        claim "$kind: flushes that only say that they were done are found out" lie_is_found_out
    fi
    stop_service
}

# stop_service : what the next service needs is memory.
stop_service() {
    claims_end_owned
    rm -rf "$CLAIMS_SCRATCH/services" "$CLAIMS_SCRATCH/contention"
}

main() {
    [[ $# -ge 2 && $1 == --marcot ]] || { sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
    local marcot=$2 kind
    shift 2
    need_packages python3
    commands_begin --marcot "$marcot"
    export TMPDIR=$CLAIMS_SCRATCH
    if (($# == 0)); then
        on_service moto "${SHORT[@]}"
    fi
    for kind in "$@"; do
        SERVICE_BUCKET_URL=
        on_service "$kind" "${LONG[@]}"
    done
    claims_end
}

main "$@"
