#!/usr/bin/env bash
# The deterministic simulator: it finds every deliberate fault that can be built into the engine, and finds
# nothing in the engine as it is, in a minute of fresh seeds. (`cargo test` runs the fixed seeds, of one machine and
# of several on one bucket.)
#
# usage: simulation.sh [--marcot BINARY]
#
# environment: MARCOT_TEST_SEED (first fresh seed; default: random, printed), MARCOT_TEST_MINUTES (how
# long, on fresh seeds of several machines on one bucket too; default 1, on those of one machine)
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(cd "$HERE/../.." && pwd)
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

deliberate_faults_are_found() {
    cargo test --quiet --manifest-path "$TOP/Cargo.toml" --package marcot-sim --features deliberate-faults \
        --test deliberate_faults -- --nocapture
}

fresh_seeds_pass() {
    local options=()
    [[ -z ${MARCOT_TEST_SEED:-} ]] || options+=(--seed "$MARCOT_TEST_SEED")
    [[ -n ${MARCOT_TEST_MINUTES:-} ]] || options+=(--only machine)
    "$TOP/scripts/sim" --minutes "${MARCOT_TEST_MINUTES:-1}" "${options[@]}"
}

main() {
    claims_begin
    cd "$TOP"
    claim 'the simulator finds every deliberate fault, and nothing without one' deliberate_faults_are_found
    claim 'fresh seeds of the simulator find nothing' fresh_seeds_pass
    claims_end
}

main "$@"
