#!/usr/bin/env bash
# Instructions and system calls of one request, against the ceilings in bench/ceilings.json.
# Nothing here measures time, so other work on the machine does not matter.
#
# usage: request-cost.sh --marcot BINARY [--record]
#
#   BINARY     marcot, built with the dev profile
#   --record   counts anew and writes the ceilings
set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$TOP/scripts/lib/packages.sh"

need_packages valgrind strace python3
PYTHONPATH=$TOP/bench exec python3 -m harness.guard "$@"
