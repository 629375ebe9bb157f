#!/usr/bin/env bash
# Two programs that share no code read the example of docs/format.md: docs/read_pool.py and marcot. Its bytes
# are in docs/example-pool.txt. The unit tests of the format compare with the same file.
#
# usage: known-bytes.sh --marcot BINARY
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DOCS=$(cd "$HERE/../../docs" && pwd)
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"
# shellcheck source=scripts/lib/commands.sh
. "$HERE/../lib/commands.sh"

IMAGE=edeb4d9ddfcc1c4c

# make_pool DIRECTORY : makes the pool from the file of bytes.
make_pool() {
    python3 - "$DOCS/example-pool.txt" "$1" <<'PYTHON'
import sys
from pathlib import Path

text, pool = Path(sys.argv[1]).read_text(), Path(sys.argv[2])
for file in text.split("\n@ ")[1:]:
    path, _, rows = file.partition("\n")
    (pool / path).parent.mkdir(parents=True, exist_ok=True)
    with (pool / path).open("wb") as out:
        for row in rows.splitlines():
            digits, _, times = row.partition("|")[0].partition("x")
            out.write(bytes.fromhex(digits) * int(times or 1))
PYTHON
    mkdir "$1/children"
    chmod -R go= "$1"
    chmod 1777 "$1/children"
}

expected() {
    head -c 4096 /dev/zero | tr '\0' A
    printf 'hello, block 1\n'
    head -c 4081 /dev/zero
}

documents_command() {
    [[ $(python3 "$DOCS/read_pool.py" "$POOL" tiny 4096 15) == 'hello, block 1' ]]
}

reader_reads_all() {
    cmp expected.raw <(python3 "$DOCS/read_pool.py" "$POOL" tiny 0 8192)
}

marcot_reads_all() {
    cmp expected.raw <("$MARCOT" export --no-progress example/tiny -)
}

damage_is_seen() {
    local damaged=$CLAIMS_SCRATCH/damaged
    cp -a "$POOL" "$damaged"
    # A byte of the leaf's second entry.
    printf '\xff' | dd of="$damaged/segments/$IMAGE/m00000001" bs=1 seek=$((8 * 512 + 60)) conv=notrunc status=none
    ! python3 "$DOCS/read_pool.py" "$damaged" tiny 4096 15 2>/dev/null
}

both_read_what_marcot_adds() {
    printf 'more' | "$MARCOT" import --no-progress - example/more &&
        [[ $(python3 "$DOCS/read_pool.py" "$POOL" more 0 4) == more ]] &&
        marcot_reads_all && reader_reads_all
}

commands_begin "$@"
POOL=$CLAIMS_SCRATCH/pool
make_pool "$POOL"
expected >expected.raw
"$MARCOT" pool attach example --backend "$POOL"

claim "known bytes: the document's command prints what the document says" documents_command
claim "known bytes: the document's reader reads the whole image" reader_reads_all
claim "known bytes: marcot reads the same bytes" marcot_reads_all
claim "known bytes: marcot finds nothing to repair" "$MARCOT" check example
claim "known bytes: the document's reader refuses a damaged page" damage_is_seen
claim "known bytes: both read an image that marcot adds, and still the first one" both_read_what_marcot_adds
claims_end
