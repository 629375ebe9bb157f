"""What must be fast in itself, and flat over size, depth and number.

Times inside the process come from the tool `shapes` (bench/src/bin); what users feel from outside
(the start of a command, a listing, the memory of a server) is measured here.
"""

import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import time

from .client import Client
from .process import Failed, run, server
from .report import say

# Repetitions behind a median of command times.
REPEATS = 21
CLONES = 1000
# Files of one open image, with room.
FILES_PER_CLONE = 12
BLOCK = 4096
TIB = 1 << 40
LARGE_TIB = 64
# Where the image that `large_image` makes can be read.
LARGE_STRIDE = 4 << 30
# An image is idle after 10 s (crates/serve, `host::rest`); and some time for the work itself.
REST_S = 14.0
QUICK_SCALE = 10
# Points of a range may lie this far apart and still count as flat: what the machine does beside.
FLAT_MS = 1.0

MS_10 = (10.0, "below 10 ms, flat")

# Part of the tool -> what it prints -> (limit, in words).
INSIDE = {
    "sizes": {
        "snap create, idle, by size": MS_10,
        "clone, by size": MS_10,
        "open to first byte, by size": MS_10,
    },
    "generations": {
        "snap create, idle, by generation": MS_10,
        "clone, by generation": MS_10,
        "open to first byte, by generation": MS_10,
    },
    "images": {
        "snap create, idle, by images in the pool": MS_10,
        "clone, by images in the pool": MS_10,
        "open to first byte, by images in the pool": MS_10,
    },
    "busy": {"snap create, busy": (10.0, "below 10 ms")},
    "flatten": {"flatten in the same pool": (100.0, "below 100 ms")},
    "discard": {
        "discard of all of an empty image": (100.0, "below 100 ms"),
        "discard of all of a full image": (1000.0, "below 1 s"),
    },
    # The cap of the map, and what else a process takes; README.md states the cap.
    "memory": {
        "memory under random writes": (96.0, "below the cap of 64 MiB and half as much again"),
        "memory after random writes": (96.0, "the same"),
    },
    "replay": {"replay after a crash": (1000.0, "below 1 s")},
}


def shape(title, points, limit, limit_shown, flat=False):
    """One shape for the JSON document. `points` are (at, value, unit, more for people)."""
    values = [value for _, value, _, _ in points]
    met = max(values) <= limit
    if flat and max(values) - min(values) > max(min(values), FLAT_MS):
        met = False
    return {
        "title": title,
        "unit": points[0][2],
        "limit": limit,
        "limit_shown": limit_shown,
        "met": met,
        "points": [
            {"at": at, "value": value, "shown": f"{value:.2f} {unit}{more}"}
            for at, value, unit, more in points
        ],
    }


def inside(settings, part, scale):
    """Runs one part of the tool in a store of its own, which stays for those who come after."""
    store = settings.directory / f"shapes-{part}"
    shutil.rmtree(store, ignore_errors=True)
    os.sync()
    printed = run(settings.tools / "shapes", part, store, scale)
    lines = [line.split("\t") for line in printed.splitlines()]
    found = []
    for title, (limit, limit_shown) in INSIDE[part].items():
        worst = {at: value for name, at, value, _ in lines if name == f"{title} (worst)"}
        points = [
            (at, float(value), unit, f" (worst {float(worst[at]):.2f})" if at in worst else "")
            for name, at, value, unit in lines
            if name == title
        ]
        if not points:
            raise Failed(f"shapes {part} printed nothing about '{title}'")
        found.append(shape(title, points, limit, limit_shown, "flat" in limit_shown))
    if part != "images":
        shutil.rmtree(store)
    return found


def timed_ms(command, environment):
    """Milliseconds that a command takes, its start and end included."""
    start = time.monotonic()
    subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return (time.monotonic() - start) * 1000


def command_start(settings):
    """The start of the program, with nothing to do."""
    empty = {"MARCOT_STORE": str(settings.directory / "no-store")}
    times = [timed_ms([settings.marcot, "--version"], empty) for _ in range(REPEATS)]
    nothing = [timed_ms(["/bin/true"], {}) for _ in range(REPEATS)]
    more = f" (/bin/true {statistics.median(nothing):.2f})"
    point = ("--version", statistics.median(times), "ms", more)
    return [shape("start of the command", [point], 10.0, "below 10 ms")]


def listing(settings):
    """`ls -l` of the pool that the part `images` of the tool leaves."""
    store = settings.directory / "shapes-images"
    if not store.exists():
        raise Failed("the shape 'listing' needs 'images' before it")
    environment = {"MARCOT_STORE": str(store)}
    command = [settings.marcot, "ls", "-l", "shapes"]
    count = len(list((store / "pools" / "shapes" / "images").iterdir()))
    times = [timed_ms(command, environment) for _ in range(3)]
    point = (f"{count} images", statistics.median(times), "ms", f" (worst {max(times):.0f})")
    return [shape("ls -l", [point], 1000.0, "below 1 s")]


def resident_mib(pid, key="VmRSS"):
    """Memory of a process: now, or with `VmHWM` at its highest."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise Failed(f"process {pid} has no memory")


def thousand_clones(settings, count):
    """A server with so many clones of one template open, each of them written to."""
    # This process holds a socket for each clone, the server several files.
    files = count * FILES_PER_CLONE + 1000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < files:
        raise Failed(f"{count} clones need {files} open files; the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    store = settings.directory / "shapes-clones"
    environment = {"MARCOT_STORE": str(store)}

    def marcot(*words):
        run(settings.marcot, *words, env=environment)

    marcot("pool", "create", "many")
    marcot("create", "--size", "1G", "many/template")
    marcot("bench", "many/template", "--io-type", "write", "--io-pattern", "rand",
           "--io-total", "64M")  # fmt: skip
    marcot("snap", "create", "--no-progress", "many/template@base")
    marcot("snap", "protect", "many/template@base")
    for number in range(count):
        marcot("clone", "many/template@base", f"many/clone-{number}")
    socket, log = settings.sockets / "clones", settings.directory / "clones.log"
    clients = []
    with server([socket], settings.marcot, "serve", "--socket", socket, env=environment, log=log) as process:
        before = resident_mib(process.pid)
        try:
            for number in range(count):
                client = Client(socket, f"many/clone-{number}")
                clients.append(client)
                client.write(number * BLOCK, os.urandom(BLOCK))
            after = resident_mib(process.pid)
        finally:
            for client in clients:
                client.close()
    shutil.rmtree(store)
    point = (f"{count} clones", after, "MiB", f" ({(after - before) * 1024 / count:.0f} KiB each)")
    return [shape("clones of one template, each touched, in one server", [point], 1024.0, "below 1 GiB")]


def idle(settings, tib):
    """A server with one image that was written sequentially, and that nobody uses."""
    store = settings.directory / "shapes-idle"
    shutil.rmtree(store, ignore_errors=True)
    run(settings.tools / "large_image", store, tib)
    socket, log = settings.sockets / "idle", settings.directory / "idle.log"
    environment = {"MARCOT_STORE": str(store)}
    reads = tib * TIB // LARGE_STRIDE
    command = [settings.marcot, "serve", "--socket", socket]
    with server([socket], *command, env=environment, log=log) as process:
        client = Client(socket, "large/image")
        try:
            client.read(0, BLOCK)
            opened = resident_mib(process.pid)
            for number in range(reads):
                if any(client.read(number * LARGE_STRIDE, BLOCK)):
                    raise Failed(f"block {number * LARGE_STRIDE // BLOCK} is not zeros")
            highest = resident_mib(process.pid, "VmHWM")
            time.sleep(REST_S)
            rested = resident_mib(process.pid)
        finally:
            client.close()
    shutil.rmtree(store)
    image = f"an image of {tib} TiB that was written sequentially"
    points = [("opened", opened, "MiB", ""), ("idle again", rested, "MiB", "")]
    read = [(f"after {reads:,} reads", highest, "MiB", "")]
    limit, limit_shown = INSIDE["memory"]["memory under random writes"]
    return [
        shape(f"memory of a server with {image}, idle", points, 64.0, "below 64 MiB"),
        shape(f"memory of a server with {image}, read all over", read, limit, limit_shown),
    ]


def measure(settings, options):
    """All shapes, or those that were asked for."""
    scale = QUICK_SCALE if options.quick else 1
    clones = CLONES // scale
    parts = {part: lambda part=part: inside(settings, part, scale) for part in INSIDE}
    parts["listing"] = lambda: listing(settings)
    parts["start"] = lambda: command_start(settings)
    parts["clones"] = lambda: thousand_clones(settings, clones)
    parts["idle"] = lambda: idle(settings, LARGE_TIB // scale)
    unknown = sorted(set(options.shape) - set(parts))
    if unknown:
        raise Failed(f"no such shape: {', '.join(unknown)}; there are {', '.join(parts)}")
    found = []
    for part, work in parts.items():
        if options.shape and part not in options.shape:
            continue
        say(f"shape {part}")
        try:
            found += work()
        except subprocess.CalledProcessError as error:
            raise Failed(f"{error.cmd}: status {error.returncode}") from error
    return found
