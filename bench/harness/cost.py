"""What one request costs in instructions, system calls and copied bytes.

None of it is a time, so none of it depends on what else the machine does. A server is run under
callgrind or strace with a fixed number of requests, and once more with none; the difference,
divided, is the cost of one. The requests come from a client that sends `depth` of them with one
system call and waits for all answers, so that batches are the same in every run.

Instructions are those of the process, not of the kernel. callgrind's processor has no AVX-512, so
checksums cost more instructions there than natively.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal

from . import client
from .process import STOP_S_MAX, run, server

BLOCK = 4096
IMAGE_BYTES = 64 << 20
# One leaf of the map; touching every one first keeps pages from loading while it is counted.
LEAF_BYTES = 2 << 20
# System calls of threads that only wait.
WAITING = {"futex", "clock_nanosleep", "restart_syscall", "rt_sigtimedwait", "ppoll", "poll"}
MOVING = ["recvfrom", "sendto", "sendmsg", "pread64", "pwritev", "pwrite64", "preadv"]


@dataclasses.dataclass(frozen=True)
class Case:
    """So many requests of one kind in flight."""

    name: str
    title: str
    command: int
    depth: int


CASES = [
    Case("read-1", "4 KiB random read, depth 1", client.READ, 1),
    Case("read-32", "4 KiB random read, depth 32", client.READ, 32),
    Case("write-1", "4 KiB random write, depth 1", client.WRITE, 1),
    Case("write-32", "4 KiB random write, depth 32", client.WRITE, 32),
]


class Probe:
    """A store with one template, and servers of fresh clones of it."""

    def __init__(self, marcot, directory, sockets):
        self.marcot = marcot
        self.directory = directory / "cost"
        self.socket = sockets / "cost.sock"
        self.environment = {"MARCOT_STORE": str(self.directory / "store")}
        self.made = 0
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        content = self.directory / "content"
        content.write_bytes(os.urandom(IMAGE_BYTES))
        self._command("pool", "create", "cost")
        self._command("import", "--no-progress", content, "cost/template")
        self._command("snap", "create", "--no-progress", "cost/template@base")
        self._command("snap", "protect", "cost/template@base")

    def _command(self, *words):
        run(self.marcot, *words, env=self.environment)

    def serve(self, case, requests, wrapper, environment=None):
        """Runs a server under `wrapper`, sends the requests, and stops it."""
        self.made += 1
        name = f"cost/clone-{self.made}"
        self._command("clone", "cost/template@base", name)
        command = [*wrapper, self.marcot, "serve", "--socket", self.socket]
        environment = {**self.environment, **(environment or {})}
        log = self.directory / "server.log"
        with server([self.socket], *command, env=environment, log=log) as process:
            connection = client.Client(self.socket, name)
            with contextlib.closing(connection):
                for offset in range(0, IMAGE_BYTES, LEAF_BYTES):
                    connection.batch([(client.READ, offset, BLOCK)])
                    connection.batch([(client.WRITE, offset, bytes(BLOCK))])
                send(connection, case, requests)
            stop_traced(process)
        if process.returncode != 0:
            raise OSError(f"the server under {wrapper[0]} ended with {process.returncode}; see {log}")

    def instructions(self, case, requests):
        """Instructions of one request, and the functions they are spent in."""
        counts = []
        for number in (0, requests):
            out = self.directory / f"callgrind.{case.name}.{number}"
            wrapper = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}"]
            # callgrind does not see what io_uring does to memory.
            self.serve(case, number, wrapper, {"MARCOT_IO": "plain"})
            counts.append(functions(out))
        none, some = counts
        spent = {name: (some[name] - none.get(name, 0)) / requests for name in some}
        return sum(spent.values()), spent

    def system_calls(self, case, requests, environment=None):
        """System calls of one request, by name, and bytes that they moved."""
        counts = []
        for number in (0, requests):
            out = self.directory / f"strace.{case.name}.{number}"
            wrapper = ["strace", "-f", "-qq", "--signal=none", "-s", "0", "-o", out]
            self.serve(case, number, wrapper, environment)
            counts.append(calls(out))
        (calls_none, moved_none), (calls_some, moved_some) = counts
        per_request = {
            name: (calls_some[name] - calls_none[name]) / requests
            for name in calls_some
            if name not in WAITING
        }
        moved = {
            name: (moved_some[name] - moved_none[name]) / requests / BLOCK for name in moved_some
        }
        return per_request, moved


def stop_traced(process):
    """Ends a server by its own id: strace keeps a signal that it gets to itself."""
    pid = process.pid
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    for child in children or [pid]:
        os.kill(int(child), signal.SIGTERM)
    process.wait(STOP_S_MAX)


def send(connection, case, requests):
    """The requests, in batches; the offsets are scattered and the same in every run."""
    place = 1
    data = os.urandom(BLOCK)
    for _ in range(0, requests, case.depth):
        offsets = []
        while len(offsets) < case.depth:
            place = (place * 1_103_515_245 + 12_345) % (1 << 31)
            offset = (place >> 8) % (IMAGE_BYTES // BLOCK) * BLOCK
            if offset not in offsets:
                offsets.append(offset)
        what = data if case.command == client.WRITE else BLOCK
        connection.batch([(case.command, offset, what) for offset in offsets])


def functions(path):
    """Instructions by function, from a file of callgrind's."""
    spent = collections.Counter()
    names = {}
    function, called = "", False
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("fn="):
                number, _, name = line[3:].strip().partition(" ")
                names.setdefault(number, name)
                function = names[number]
            elif line.startswith("cfn="):
                number, _, name = line[4:].strip().partition(" ")
                if name:
                    names.setdefault(number, name)
            elif line.startswith("calls="):
                # The line after it is what was spent below, which is counted there.
                called = True
            elif line[:1].isdigit() or line[:1] in "+-*":
                if not called:
                    spent[function] += int(line.split()[-1])
                called = False
    return spent


CALL = re.compile(r"^\d+\s+(?:<\.\.\. )?(\w+)(?:\(| resumed)(?:.*= (-?\d+))?")


def calls(path):
    """System calls by name, and the bytes that those moved which move bytes."""
    count, moved = collections.Counter(), collections.Counter()
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            found = CALL.match(line)
            if not found:
                continue
            name, result = found.groups()
            # What was interrupted in the record is counted where it began.
            if "resumed" not in line.split("(", 1)[0]:
                count[name] += 1
            if name in MOVING and result and int(result) > 0:
                moved[name] += int(result)
    return count, moved
