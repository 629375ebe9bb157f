# shellcheck shell=bash
# Code shared by the tests of the command line: the program, its refusals, its server.
#
# Sourced after claims.sh, never run. Invariants:
#   * no command is waited for longer than COMMAND_TIMEOUT_S: a hang is a failed claim;
#   * where a command does not do what is expected, its output is shown;
#   * a refusal has the expected status, at most a few lines on standard error with the
#     expected one among them, and no sign of a crash.

# Much longer than any command takes on a busy machine: only a hang reaches this limit.
COMMAND_TIMEOUT_S=120
SERVER_WAIT_TENTHS=600
# A refusal with more lines than this is not clear.
REFUSAL_LINES_MAX=4
# Statuses of a crash: a Rust panic, and a file that cannot be executed.
STATUS_PANIC=101

# commands_begin --marcot BINARY : the program under test, in a directory that all users can reach.
commands_begin() {
    if [[ $# -ne 2 || $1 != --marcot || ! -x ${2-} ]]; then
        printf 'usage: %s --marcot BINARY\n' "$(basename "$0")" >&2
        exit 2
    fi
    ((EUID == 0)) || { printf '%s: needs root\n' "$(basename "$0")" >&2 && exit 2; }
    claims_begin
    chmod 755 "$CLAIMS_SCRATCH"
    install -m 755 "$2" "$CLAIMS_SCRATCH/marcot"
    MARCOT=$CLAIMS_SCRATCH/marcot
    export MARCOT_STORE=$CLAIMS_SCRATCH/store MARCOT_RUN_DIR=$CLAIMS_SCRATCH/run TZ=UTC LC_ALL=C
    cd "$CLAIMS_SCRATCH" || exit 1
}

marcot() {
    timeout "$COMMAND_TIMEOUT_S" "$MARCOT" "$@"
}

commands_show() {
    printf '#   $ %s\n' "$*"
    sed 's/.*\r//; s/^/#   > /' "$CLAIMS_SCRATCH/out" "$CLAIMS_SCRATCH/err"
}

# does COMMAND... : succeeds; its output is in $CLAIMS_SCRATCH/out and err.
does() {
    local status=0
    "$@" >"$CLAIMS_SCRATCH/out" 2>"$CLAIMS_SCRATCH/err" </dev/null || status=$?
    ((status == 0)) && return 0
    commands_show "$@"
    printf '#   exit status %d\n' "$status"
    return 1
}

# says TEXT COMMAND... : succeeds and prints a line that contains TEXT.
says() {
    local text=$1
    shift
    does "$@" || return 1
    grep -qF -- "$text" "$CLAIMS_SCRATCH/out" && return 0
    commands_show "$@"
    return 1
}

# prints EXPECTED COMMAND... : succeeds, and prints exactly this on standard output.
prints() {
    local expected=$1
    shift
    does "$@" || return 1
    [[ $(<"$CLAIMS_SCRATCH/out") == "$expected" ]] && return 0
    commands_show "$@"
    return 1
}

crashed() {
    (($1 == STATUS_PANIC || $1 >= 128)) ||
        grep -qE 'panicked|RUST_BACKTRACE|Os \{|Error \{' "$CLAIMS_SCRATCH/err"
}

# refuses STATUSES LINE COMMAND...
#
# Ends with one of the STATUSES (separated by commas), and LINE is a whole line of standard error
# (of at most REFUSAL_LINES_MAX), a progress line's carriage returns aside; * in it stands for any text.
refuses() {
    local statuses=$1 pattern line status=0
    pattern=$(commands_pattern "$2")
    shift 2
    "$@" >"$CLAIMS_SCRATCH/out" 2>"$CLAIMS_SCRATCH/err" </dev/null || status=$?
    if [[ ,$statuses, == *,$status,* ]] && ! crashed "$status" &&
        (($(wc -l <"$CLAIMS_SCRATCH/err") <= REFUSAL_LINES_MAX)); then
        while IFS= read -r line; do
            # shellcheck disable=SC2053 # a pattern on purpose
            [[ ${line##*$'\r'} != $pattern ]] || return 0
        done <"$CLAIMS_SCRATCH/err"
    fi
    commands_show "$@"
    printf '#   exit status %d, should be %s\n' "$status" "$statuses"
    return 1
}

# Every character except * stands for itself.
commands_pattern() {
    local text=${1//\\/\\\\}
    text=${text//'['/'\['}
    text=${text//'?'/'\?'}
    text=${text//'('/'\('}
    printf '%s' "${text//')'/'\)'}"
}

# tree_state DIRECTORY : names, modes, owners, sizes, times and content of everything in it.
tree_state() {
    (
        cd "$1" || exit 1
        find . -printf '%p %y %m %U %G %s %T@\n' | sort
        find . -type f -print0 | sort -z | xargs -0 -r sha256sum
    )
}

# content SPEC : the checksum of an image's or snapshot's bytes; fails where they cannot be read.
content() (
    set -o pipefail
    marcot export --no-progress "$1" - | sha256sum
)

# holds SPEC SUM
holds() {
    local sum
    sum=$(content "$1") || return 1
    [[ $sum == "$2" ]] && return 0
    printf '#   %s has other content\n' "$1"
    return 1
}

# serve SOCKET ARGUMENT... : starts a server that ends with the script; its process id is in $SERVER.
serve() {
    local socket=$1
    shift
    serve_with "$MARCOT" serve --socket "$socket" "$@"
}

# serve_with COMMAND... : as serve, with the complete command.
serve_with() {
    local tenths=0
    start_owned "$@" >"$CLAIMS_SCRATCH/server.out" 2>"$CLAIMS_SCRATCH/server.err"
    SERVER=$!
    until grep -q "^listening on" "$CLAIMS_SCRATCH/server.out"; do
        if ((tenths++ >= SERVER_WAIT_TENTHS)) || ! kill -0 "$SERVER" 2>/dev/null; then
            cat "$CLAIMS_SCRATCH/server.err" >&2
            printf 'the server did not start\n' >&2
            exit 1
        fi
        sleep 0.1
    done
}

# stop_serving PID : tells the server to end; it must end with status 0.
stop_serving() {
    local status=0
    kill -TERM "$1"
    wait "$1" || status=$?
    disown_ended "$1"
    ((status == 0)) && return 0
    sed 's/^/#   server: /' "$CLAIMS_SCRATCH/server.err"
    return 1
}

# uri SOCKET EXPORT
uri() {
    printf 'nbd+unix:///%s?socket=%s' "$2" "$1"
}

# qemu_io [-r] URI QEMU-IO-COMMAND... : its output goes to $CLAIMS_SCRATCH/io.
qemu_io() {
    local options=(-f raw) command
    if [[ $1 == -r ]]; then options+=(-r) && shift; fi
    local uri=$1
    shift
    for command in "$@"; do options+=(-c "$command"); done
    timeout "$COMMAND_TIMEOUT_S" qemu-io "${options[@]}" "$uri" >"$CLAIMS_SCRATCH/io" 2>&1
}

# io [-r] URI QEMU-IO-COMMAND... : all commands succeed, and reads with a pattern find the pattern.
io() {
    local status=0
    qemu_io "$@" || status=$?
    if ((status == 0)) && ! grep -qiE 'fail|error|cannot|verification' "$CLAIMS_SCRATCH/io"; then return 0; fi
    sed 's/^/#   qemu-io: /' "$CLAIMS_SCRATCH/io"
    return 1
}

# io_fails TEXT [-r] URI QEMU-IO-COMMAND... : the last command fails and prints TEXT.
io_fails() {
    local text=$1
    shift
    qemu_io "$@" || true
    tail -n 1 "$CLAIMS_SCRATCH/io" | grep -qF -- "$text" && return 0
    sed 's/^/#   qemu-io: /' "$CLAIMS_SCRATCH/io"
    return 1
}

# sound POOL... : the pools check clean.
sound() {
    local pool
    for pool in "$@"; do
        says "all is well" marcot check --no-progress "$pool" || return 1
    done
}
