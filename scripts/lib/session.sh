# shellcheck shell=bash
# Running commands as in a terminal session: shows each command and its output, and checks that output and
# exit status are as expected.
#
# Sourced after claims.sh. Expected output comes on standard input, a line a line:
#   text        a line of standard output; * ? [] match as in file names
#   err: text   a line of standard error; \r stands for a carriage return
#   ...         any lines
# Without standard input (a terminal, or nothing) no output is expected.

SESSION_STEPS=0
CAPTURED=

say() {
    printf '\n== %s\n' "$*"
}

# What a terminal would show: the last state of a line that is overwritten by carriage returns.
session_show() {
    sed 's/.*\r//; s/^/    /' "$1"
}

# session_pattern TEXT : the text as a pattern in which only * and ? and \r are special.
session_pattern() {
    local text=$1
    text=${text//'\r'/$'\r'}
    text=${text//'['/'\['}
    text=${text//']'/'\]'}
    text=${text//'('/'\('}
    text=${text//')'/'\)'}
    printf '%s' "$text"
}

# session_matches PATTERNS OUTPUT : both files, line by line.
session_matches() {
    local -a patterns lines
    local i=0 line pattern
    mapfile -t patterns <"$1"
    mapfile -t lines <"$2"
    for pattern in "${patterns[@]}"; do
        if [[ $pattern == ... ]]; then
            # The rest, or up to the line that the next pattern matches.
            local next=${patterns[$((++i_pattern))]-}
            if [[ -z $next ]]; then return 0; fi
            next=$(session_pattern "$next")
            # shellcheck disable=SC2053 # a pattern on purpose
            while ((i < ${#lines[@]})) && [[ ${lines[i]} != $next ]]; do i=$((i + 1)); done
            continue
        fi
        i_pattern=$((i_pattern + 1))
        line=${lines[i]-$'\x01'}
        # shellcheck disable=SC2053
        [[ $line == $(session_pattern "$pattern") ]] || return 1
        i=$((i + 1))
    done
    ((i == ${#lines[@]}))
}

# run [-s STATUS] COMMAND... [<EXPECTED]
run() {
    local want=0 status=0 i_pattern=0
    [[ $1 != -s ]] || { want=$2 && shift 2; }
    local base=$CLAIMS_SCRATCH/session
    : >"$base.want"
    [[ -t 0 || -c /dev/stdin ]] || cat >"$base.want"
    sed -n 's/^err: //p' "$base.want" >"$base.want-err"
    sed '/^err: /d' "$base.want" >"$base.want-out"
    printf '\n$ %s\n' "$*"
    "$@" >"$base.out" 2>"$base.err" </dev/null || status=$?
    SESSION_STEPS=$((SESSION_STEPS + 1))
    session_show "$base.out"
    session_show "$base.err"
    i_pattern=0
    if ((status != want)); then
        claim "exit status $want (was $status)" false
    elif ! { i_pattern=0 && session_matches "$base.want-out" "$base.out"; }; then
        claim "standard output as expected" false
        diff "$base.want-out" "$base.out" || true
    elif ! { i_pattern=0 && session_matches "$base.want-err" "$base.err"; }; then
        claim "standard error as expected" false
        diff <(sed 's/\\r/\r/g' "$base.want-err") "$base.err" | cat -A || true
    fi
}

# capture COMMAND... : its standard output goes to $CAPTURED.
capture() {
    printf '\n$ %s\n' "$*"
    SESSION_STEPS=$((SESSION_STEPS + 1))
    CAPTURED=$("$@") || claim "exit status 0" false
    printf '    %s\n' "$CAPTURED"
}
