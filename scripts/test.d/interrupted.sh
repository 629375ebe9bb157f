#!/usr/bin/env bash
# A run of scripts/test that is interrupted in the middle of a part leaves nothing behind: no process, no
# mount, no loop device, no file.
#
# usage: interrupted.sh [--marcot BINARY]
#
# scripts/test builds the program that it tests itself.
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

WAIT_S=600

# The paths and command lines of a run all contain the directory $THERE.
mounts() { awk -v under="$THERE/" 'index($2, under) == 1 { print $2 }' /proc/mounts; }
loops() { cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -F "$THERE/" || true; }
processes() {
    local directory
    for directory in /proc/[0-9]*; do
        if { tr '\0' ' ' <"$directory/cmdline" && tr '\0' ' ' <"$directory/environ"; } 2>/dev/null | grep -qF "$THERE"; then
            printf '%s %s\n' "${directory#/proc/}" "$(tr '\0' ' ' <"$directory/cmdline")"
        fi
    done 2>/dev/null
}

has_mount() { [[ -n $(mounts) ]]; }
has_store() { [[ -n $(find "$THERE" -path '*/stores/*/store' 2>/dev/null) ]]; }

# nothing WHAT : WHAT (one of the functions above and `files`) prints nothing, soon after the run has ended.
nothing() {
    local tenths=0
    while [[ -n $("$1") ]]; do
        ((tenths++ < 600)) || { "$1" | sed 's/^/#   left: /' && return 1; }
        sleep 0.1
    done
}

files() { find "$THERE" -mindepth 1; }

# interrupt PART CONDITION SIGNAL : starts a run of the part, and sends it the signal when the condition holds.
interrupt() {
    local part=$1 condition=$2 signal=$3 run status=0 began=$SECONDS what
    THERE=$CLAIMS_SCRATCH/$part
    mkdir "$THERE"
    chmod 755 "$CLAIMS_SCRATCH"
    # The shell makes background commands ignore SIGINT; Python resets that.
    TMPDIR=$THERE start_owned python3 -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$HERE/../test" "$part" >"$CLAIMS_SCRATCH/$part.log" 2>&1
    run=$!
    until "$condition"; do
        if ! kill -0 "$run" 2>/dev/null || ((SECONDS > began + WAIT_S)); then
            cat "$CLAIMS_SCRATCH/$part.log"
            claim "$part: the run reaches the condition $condition" false
            return 0
        fi
        sleep 0.1
    done
    kill "-$signal" "$run"
    wait "$run" || status=$?
    disown_ended "$run"
    claim "$part, SIG$signal: the run ends with a signal's status ($status)" test "$status" -ge 128
    for what in processes mounts loops files; do claim "$part, SIG$signal: no $what are left" nothing "$what"; done
}

main() {
    claims_begin
    interrupt mapped-filesystems has_mount TERM
    interrupt survival has_mount INT
    interrupt torture has_store TERM
    claims_end
}

main "$@"
