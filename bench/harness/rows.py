"""Rounds of the table: which run follows which, and what is put away between them."""

import contextlib
import os
import pathlib
import threading

from . import fio, memory
from .figures import bounds, ratios, slowest_second
from .report import say

DISK_USE_INTERVAL_S = 0.5
DROP_CACHES = pathlib.Path("/proc/sys/vm/drop_caches")


def forget_cached(paths):
    """Empties the page cache of files, and of everything where the kernel lets us."""
    os.sync()
    for top in map(pathlib.Path, paths):
        files = [top] if top.is_file() else [f for f in top.rglob("*") if f.is_file()]
        for file in files:
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError):
        DROP_CACHES.write_text("3\n")


class DiskUseWatch(threading.Thread):
    """Keeps the highest disk use seen while a run goes on."""

    def __init__(self, system):
        super().__init__(daemon=True)
        self.system = system
        self.highest = 0.0
        self.ended = threading.Event()

    def look(self):
        """Looks once."""
        # A segment may vanish between being listed and being looked at.
        with contextlib.suppress(FileNotFoundError):
            self.highest = max(self.highest, self.system.disk_use() or 0.0)

    def run(self):
        while not self.ended.wait(DISK_USE_INTERVAL_S):
            self.look()

    def __enter__(self):
        self.look()
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        self.look()


def one_run(system, workload, settings):
    """One run of one system; a dict for the JSON document."""
    options = {**workload.fio, **fio.timed(settings.seconds, workload.touch_once)}
    size, environment = settings.size_bytes, system.environment
    asked_before = system.asked()
    if workload.cache == "cold":
        system.forget()
        forget_cached(system.content())
    # What the run before left to write would be written at this one's cost.
    os.sync()
    with system.serve(workload.image, workload.images) as targets:
        if workload.cache == "warm" and system.has_content:
            fio.read_all(targets, size, environment)
        if workload.cache != "warm":
            memory.use_once(settings.size_bytes * workload.images)
        watch = None
        if workload.disk_use_max is not None and not system.is_peer:
            watch = DiskUseWatch(system)
        with watch or contextlib.nullcontext():
            outcome = fio.run(targets, options, size, environment, workload.sustained)
    return {
        "peer": system.is_peer,
        "figure": outcome.figure(workload),
        "iops": outcome.iops,
        "bytes_s": outcome.bytes_s,
        "p99_us": outcome.p99_us,
        "p999_us": outcome.p999_us,
        "series": outcome.series,
        "mean_us": outcome.mean_us,
        "requests": outcome.requests,
        "disk_use": watch.highest if watch else None,
        "asked": since(asked_before, system.asked()),
    }


def since(before, now):
    """What was asked of a service meanwhile; None where there is none."""
    return None if before is None else {kind: now[kind] - before[kind] for kind in now}


def measure(workload, systems, settings):
    """All rounds of one row: {system: [outcome of round 0, ...]}."""
    runs = {system.name: [] for system in systems}
    for number in range(settings.rounds):
        # Back and forth, so that no system always comes after the same one.
        order = systems if number % 2 == 0 else systems[::-1]
        for system in order:
            outcome = one_run(system, workload, settings)
            runs[system.name].append(outcome)
            say(f"  round {number + 1} {system.name:18} {shown(workload, outcome)}")
    return runs


def shown(workload, outcome):
    """A run's figure for people."""
    if workload.bandwidth:
        rate = f"{outcome['bytes_s'] / (1 << 20):9.0f} MiB/s"
    else:
        rate = f"{outcome['iops']:9.0f} /s, p99 {outcome['p99_us']:.0f} us"
    if not outcome["series"]:
        return rate
    return f"{rate}, p99.9 {outcome['p999_us']:.0f} us, slowest second {slowest_second(outcome):.2f}"


def document(workload, runs, settings):
    """One row for the JSON document."""
    limited = settings.memory_bytes
    within = f" (servers within {limited >> 20} MiB)" if limited else ""
    return {
        "name": workload.name + (f"-{limited >> 20}m" if limited else ""),
        "size_bytes": settings.size_bytes,
        "seconds": settings.seconds,
        "rounds": settings.rounds,
        "title": workload.title + within,
        "unit": "bytes/s" if workload.bandwidth else "requests/s",
        "fio": workload.fio,
        "runs": runs,
        "ratios": [
            {
                "of": ours,
                "to": peer,
                "median": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "floor": ratio.floor,
                "met": ratio.met,
            }
            for (ours, peer), ratio in ratios(workload, runs).items()
        ],
        "bounds": [
            {"of": ours, "what": b.what, "value": b.value, "limit": b.limit, "met": b.met}
            for ours, found in bounds(workload, runs).items()
            for b in found
        ],
    }
