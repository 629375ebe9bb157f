"""One run of the client, fio."""

import collections
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile

from .process import Failed

P99 = "99.000000"
P999 = "99.900000"
# A point of a series, in milliseconds.
SERIES_STEP_MS = 1000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run gave; several images are added up, latencies are the worst of them."""

    iops: float
    bytes_s: float
    p99_us: float
    p999_us: float
    mean_us: float
    requests: int
    # Requests of each second, of all images together; empty where nobody asked for it.
    series: tuple = ()

    def figure(self, workload):
        """The figure that the row compares."""
        return self.bytes_s if workload.bandwidth else self.iops


def _command(targets, options, size_bytes):
    common = {
        "size": size_bytes,
        # The same offsets for every system; every block is visited once before any is twice.
        "randrepeat": 1,
        "norandommap": 0,
        # fio's own thread, not a process with a shared memory segment.
        "thread": 1,
        **options,
    }
    words = ["fio", "--output-format=json", "--eta=never"]
    for number, target in enumerate(targets):
        words.append(f"--name=image{number}")
        words += [f"--{key}={value}" for key, value in {**common, **target}.items()]
    return words


def run(targets, options, size_bytes, env=None, series=False):
    """Runs the same job against every target at once; `targets` are options that name them."""
    with tempfile.TemporaryDirectory(prefix="marcot-fio-") as directory:
        log = pathlib.Path(directory) / "log"
        if series:
            options = {**options, "write_iops_log": log, "log_avg_msec": SERIES_STEP_MS}
        outcome = _run(_command(targets, options, size_bytes), len(targets), env)
        if series:
            outcome = dataclasses.replace(outcome, series=_series(log))
        return outcome


def _series(log):
    """Requests of each whole second, from fio's logs: lines of time in ms, rate, direction."""
    seconds = collections.Counter()
    for file in log.parent.glob(f"{log.name}_iops.*.log"):
        for line in file.read_text(encoding="ascii").splitlines():
            time_ms, rate = line.split(",")[:2]
            seconds[round(int(time_ms) / SERIES_STEP_MS)] += int(rate)
    # The last one is as long as what was left.
    return tuple(seconds[second] for second in sorted(seconds))[:-1]


def _run(command, targets, env):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=None if env is None else {**os.environ, **env},
    )
    # Libraries under fio print before the document.
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        said = (done.stderr or done.stdout).strip()
        raise Failed(f"{' '.join(command)}: status {done.returncode}: {said}")
    jobs = json.loads(done.stdout[start:])["jobs"]
    failed = [job for job in jobs if job["error"]]
    if failed or len(jobs) != targets:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    return _sum(jobs)


def _sum(jobs):
    sides = [job[side] for job in jobs for side in ("read", "write") if job[side]["total_ios"]]
    requests = sum(side["total_ios"] for side in sides)
    if not requests:
        raise Failed("fio made no requests")
    total_ns = sum(side["clat_ns"]["mean"] * side["total_ios"] for side in sides)
    return Outcome(
        iops=sum(side["iops"] for side in sides),
        bytes_s=float(sum(side["bw_bytes"] for side in sides)),
        p99_us=max(side["clat_ns"]["percentile"][P99] for side in sides) / 1000,
        p999_us=max(side["clat_ns"]["percentile"][P999] for side in sides) / 1000,
        mean_us=total_ns / requests / 1000,
        requests=requests,
    )


def timed(seconds, touch_once):
    """Options of a run of so many seconds."""
    if touch_once:
        return {"runtime": seconds}
    return {"runtime": seconds, "time_based": 1}


def read_all(targets, size_bytes, env=None):
    """Reads everything once, so that the page cache has it."""
    run(targets, {"rw": "read", "bs": "1m", "iodepth": 8}, size_bytes, env)


def overwrite(targets, passes, size_bytes, env=None):
    """Overwrites every block `passes` times, in random order."""
    run(targets, {"rw": "randwrite", "bs": "4k", "iodepth": 32, "loops": passes}, size_bytes, env)
