"""Holds the cost of a request to recorded ceilings; prints one claim a line.

usage: python3 -m harness.guard --marcot BINARY [--record]

The ceilings lie in bench/ceilings.json. They are for the build that scripts/test makes (the `dev`
profile), and lie a margin above what was counted. `--record` counts anew and writes them.
"""

import argparse
import json
import pathlib
import sys
import tempfile

from . import cost

CEILINGS = pathlib.Path(__file__).resolve().parents[1] / "ceilings.json"
REQUESTS = 640
# A ceiling is what was counted, times the factor, plus the slack. Compilers and their libraries
# change a little from version to version, timers of the server fire now and then, and a batch may
# arrive in two parts.
MARGINS = {
    "instructions": {"factor": 1.2, "slack": 0},
    "system calls": {"factor": 1.05, "slack": 0.1},
}


def counted(probe, case):
    """The cost of one request."""
    instructions, _ = probe.instructions(case, REQUESTS)
    calls, _ = probe.system_calls(case, REQUESTS)
    # How often the server looks in vain before it sleeps, and gives way, is a matter of time.
    in_vain = 2 * calls.get("sched_yield", 0)
    counted = round(sum(calls.values()) - in_vain, 2)
    return {"instructions": round(instructions), "system calls": counted}


def main():
    """Counts and compares; status 1 where a ceiling is broken."""
    options = argparse.ArgumentParser(prog="guard", description=__doc__)
    options.add_argument("--marcot", type=pathlib.Path, required=True)
    options.add_argument("--record", action="store_true")
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="marcot-guard-") as directory:
        directory = pathlib.Path(directory)
        probe = cost.Probe(options.marcot.resolve(), directory, directory)
        found = {case.name: counted(probe, case) for case in cost.CASES}
    if options.record:
        document = {"build": "dev", "margins": MARGINS, "counted": found}
        CEILINGS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return 0
    recorded = json.loads(CEILINGS.read_text(encoding="utf-8"))
    broken = 0
    for case in cost.CASES:
        for what, margin in recorded["margins"].items():
            ceiling = recorded["counted"][case.name][what] * margin["factor"] + margin["slack"]
            value = found[case.name][what]
            kept = value <= ceiling
            broken += not kept
            word = "ok" if kept else "not ok"
            print(f"{word} - {case.title} takes {value:.2f} {what}, at most {ceiling:.2f}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
