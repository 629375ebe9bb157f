"""Generated sequences with both programs: comparing, finding the shortest that differs, recording."""

import collections
import difflib
import queue
import re
import sys
import threading

from . import meant
from .outcomes import CASES, Outcome, Rules, written
from .sequences import Sequence

RECORDINGS = CASES / "generated.recorded"
# Together they have nearly all commands with most of their options: few enough for every run of the tests.
RECORDED_NUMBERS = [
    *(0, 7, 42, 50, 53, 74, 92, 93, 103, 108, 115, 145, 150, 174, 201, 215, 227, 245, 268, 272),
    *(300, 312, 317, 334, 346, 349, 365, 369, 375, 386),
]
# Pipes fail where any part fails.
HOW = {"bash": ("bash", "-o", "pipefail"), "time_max_s": 60, "stuck_ends": True}
SHRINK_TRIES_MAX = 30


class Difference:
    """The first command of a sequence that the programs answer in different ways."""

    def __init__(self, lines, at, theirs, ours):
        self.lines, self.at, self.theirs, self.ours = lines, at, theirs, ours

    @property
    def command(self):
        return self.lines[self.at]

    def kind(self):
        """What differences of one cause have in common, mostly: the command, and the first lines that differ."""
        name = re.match(r"(?:rbd )?(?:--?[\w-]+(?:=\S+)? )*((?:[a-z-]+ ?){1,3})", self.command)
        pairs = zip(self.theirs.lines + [""] * 99, self.ours.lines + [""] * 99)
        theirs, ours = next(((a, b) for a, b in pairs if a != b), ("", ""))
        command = name.group(1).strip() if name else self.command[:20]
        blurred = [re.sub(r"\d+|'[^']*'|\b(rbd|tank|ns|deep)/", "#", text)[:60] for text in (theirs, ours)]
        return " | ".join([command, *blurred])

    def show(self):
        print(f"# {self.kind()}")
        for line in self.lines[: self.at + 1]:
            print(f"  {line}")
        for line in difflib.unified_diff(self.theirs.lines, self.ours.lines, "expected", "marcot", n=1, lineterm=""):
            print(f"#   {line}")


def compare(theirs, ours):
    """(commands alike, commands different on purpose, the first other difference or None).

    What is different on purpose can have changed what is there: then the rest is not compared.
    """
    equal = on_purpose = 0
    lines = [command for command, _ in theirs]
    for at, ((command, expected), (_, outcome)) in enumerate(zip(theirs, ours)):
        # Two programs write at the same time.
        piped = "| rbd " in command
        if expected == outcome or (piped and sorted(expected.lines) == sorted(outcome.lines)):
            equal += 1
            continue
        difference = meant.reason(lines[: at + 1], expected.text(), outcome.text())
        if difference is None:
            return equal, on_purpose, Difference(lines, at, expected, outcome)
        on_purpose += 1
        if difference.state:
            break
    return equal, on_purpose, None


class Pair:
    """A cluster and marcot, asked the same: two functions that run commands."""

    def __init__(self, cluster, with_marcot):
        self.cluster, self.with_marcot, self.rules = cluster, with_marcot, Rules()

    def ask(self, lines):
        """What `compare` returns for these commands."""
        theirs = self.cluster(lines, self.rules)
        return compare(theirs, self.with_marcot(lines, self.rules, HOW))

    def shortest(self, difference):
        """The same difference with as few commands before it as a few tries find."""
        kept, tries = difference, 0
        size = max(difference.at // 2, 1)
        while size:
            at = kept.at - size
            while at >= 0 and tries < SHRINK_TRIES_MAX:
                tries += 1
                lines = kept.lines[:at] + kept.lines[at + size : kept.at + 1]
                found = self.ask(lines)[2]
                if found and found.command == kept.command and found.kind() == kept.kind():
                    kept = found
                at -= size
            size //= 2
        return kept


def search(pairs, numbers, shrink):
    """Runs sequences, one lane for each pair; returns the counts and the differences by kind."""
    waiting, sums, kinds = queue.Queue(), collections.Counter(), collections.defaultdict(list)
    for number in numbers:
        waiting.put(number)
    lock = threading.Lock()

    def lane(pair):
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            equal, on_purpose, difference = pair.ask(Sequence(number).lines())
            with lock:
                if sums["sequences"] % 50 == 49:
                    print(f"{sums['sequences'] + 1} sequences", file=sys.stderr, flush=True)
                sums.update(sequences=1, equal=equal, on_purpose=on_purpose, differ=difference is not None)
                if difference is None:
                    continue
                new = difference.kind() not in kinds
                kinds[difference.kind()].append(number)
            if new and shrink:
                difference = pair.shortest(difference)
            with lock:
                if new:
                    print(f"\n# sequence {number}", flush=True)
                    difference.show()
                    sys.stdout.flush()

    threads = [threading.Thread(target=lane, args=(pair,)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sums, kinds


# --- Recordings -----------------------------------------------------------------------------------


def record(cluster):
    """Writes what the real `rbd` answers."""
    rules, text = Rules(), ""
    for number in RECORDED_NUMBERS:
        text += f"= {number}\n" + written(cluster(Sequence(number).lines(), rules))
    RECORDINGS.write_text(text)


def recorded():
    """{number: [(command, outcome)]}."""
    found, number = {}, None
    for line in RECORDINGS.read_text().splitlines() if RECORDINGS.exists() else []:
        if line.startswith("= "):
            number = int(line[2:])
            found[number] = []
        elif line.startswith("$ "):
            found[number].append((line[2:], Outcome([])))
        else:
            found[number][-1][1].lines.append(line)
    return found
