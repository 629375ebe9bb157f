"""Commands, what they print and return, and the files that hold it."""

import os
import pathlib
import re
import signal
import subprocess
import tempfile

CASES = pathlib.Path(__file__).resolve().parents[2] / "oracle.d"
COMMAND_TIME_MAX_S = 60


class Trouble(Exception):
    """An error that prevents the comparison."""


def escaped(text):
    """Lines of a stream as they stand in a file; `\\c` ends a text that has no newline at its end."""
    lines = []
    for line in re.findall(r"[^\n]*\n|[^\n]+$", text):
        shown = line.rstrip("\n").replace("\\", "\\\\").replace("\r", "\\r").replace("\t", "\\t")
        if shown.endswith(" "):
            shown = shown[:-1] + "\\s"
        lines.append(shown if line.endswith("\n") else shown + "\\c")
    return lines


class Outcome:
    """Status and output of a command, normalised, as lines of a file."""

    def __init__(self, lines):
        self.lines = lines

    @classmethod
    def of(cls, status, out, err):
        lines = [] if status == 0 else [f"status: {status}"]
        lines += [f"out: {line}" for line in escaped(out)]
        lines += [f"err: {line}" for line in escaped(err)]
        return cls(lines)

    def __eq__(self, other):
        return self.lines == other.lines

    def text(self):
        """All lines, for regular expressions."""
        return "\n".join(self.lines)

    def show(self, what):
        """Prints the outcome in readable form."""
        for line in self.lines or ["(nothing, status 0)"]:
            print(f"#   {what} {line}")


def keyed(pairs):
    """{(command, how often it came before): value}: a command may come twice."""
    seen, found = {}, {}
    for command, value in pairs:
        number = seen[command] = seen.get(command, 0) + 1
        found[(command, number)] = value
    return found


def read_outcomes(path):
    """[(command, outcome, comment)] of a file of outcomes; none where there is no such file."""
    entries, comment = [], []
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("# "):
            comment.append(line[2:])
        elif line.startswith("$ "):
            entries.append((line[2:], Outcome([]), " ".join(comment)))
            comment = []
        elif line and entries:
            entries[-1][1].lines.append(line)
    return entries


def written(entries):
    """The counterpart of `read_outcomes`, without comments."""
    return "".join("\n".join([f"$ {command}", *outcome.lines]) + "\n" for command, outcome in entries)


class Rules:
    """What is replaced in all outputs before they are compared: lines `regular expression -> replacement`."""

    def __init__(self):
        self.found = []
        for line in (CASES / "normalise").read_text().splitlines():
            if line and not line.startswith("#"):
                pattern, _, replacement = line.partition(" -> ")
                self.found.append((re.compile(pattern, re.MULTILINE), replacement))

    def normalised(self, text):
        """A text without the parts that must differ."""
        for pattern, replacement in self.found:
            text = pattern.sub(replacement, text)
        return text


def run(command, directory, environment, rules, bash=("bash",), time_max_s=COMMAND_TIME_MAX_S):
    """The outcome of one command; one that does not end is ended, and has the status 124."""
    with subprocess.Popen(
        [*bash, "-c", command],
        cwd=directory,
        env={
            **environment,
            "PATH": f"{environment['PATH']}:{CASES}",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as running:
        try:
            streams = running.communicate(timeout=time_max_s)
            status = running.returncode
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            streams = running.communicate()
            status = 124
    out, err = (rules.normalised(stream.decode(errors="replace")) for stream in streams)
    return Outcome.of(status, out, err)


def run_all(lines, environment, rules, stuck_ends=False, **how):
    """[(command, outcome)] of commands, one after the other, in an empty directory.

    With `stuck_ends` none is run after one that does not end.
    """
    answered = []
    with tempfile.TemporaryDirectory(prefix="marcot-oracle.") as directory:
        for line in lines:
            outcome = run(line, directory, environment, rules, **how)
            answered.append((line, outcome))
            if stuck_ends and "status: 124" in outcome.lines:
                break
    return answered
