"""The rows of the table, as data.

`floors` are medians of paired ratios that marcot has to reach, by the name of the peer. What a row
does not say is the same for all: 4 KiB blocks, one connection, buffers of random bytes.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row."""

    name: str
    title: str
    # Options of fio. The same for every system.
    fio: dict
    floors: dict
    # "fresh": a clone made for this run, nothing written to it yet. "kept": one clone for all
    # rounds. "worn": kept, and overwritten at random three times over before the first run.
    image: str = "kept"
    # What the page cache holds before the run: "any", "warm" or "cold".
    cache: str = "any"
    images: int = 1
    # Ends when every block was touched once, or when the time is over.
    touch_once: bool = False
    # The figure is bytes a second instead of requests a second.
    bandwidth: bool = False
    # Bounds besides the floors: p99 latency to the first peer's, disk use to live data.
    p99_ratio_max: float | None = None
    disk_use_max: float | None = None
    # Kept up: the run is looked at second by second, and its slowest second and p99.9 count.
    sustained: bool = False


def _random(direction, depth, **more):
    return {"rw": direction, "bs": "4k", "iodepth": depth, **more}


def _sequential(direction):
    return {"rw": direction, "bs": "1m", "iodepth": 8}


WORN_PASSES = 3

WORKLOADS = [
    Workload(
        "randwrite-32",
        "random write, depth 32, fresh clone (first touch)",
        _random("randwrite", 32),
        {"file": 4.0, "null": 0.75},
        image="fresh",
        touch_once=True,
    ),
    Workload(
        "randwrite-1",
        "random write, depth 1, fresh clone",
        _random("randwrite", 1),
        {"file": 1.0, "null": 0.6},
        image="fresh",
        touch_once=True,
    ),
    Workload(
        "randread-32",
        "random read, depth 32, in page cache",
        _random("randread", 32),
        {"file": 1.7, "null": 1.2},
        cache="warm",
    ),
    Workload(
        "randread-32-cold",
        "random read, depth 32, not in page cache",
        _random("randread", 32),
        {"file": 1.0},
        cache="cold",
        touch_once=True,
    ),
    Workload(
        "randread-1",
        "random read, depth 1, in page cache",
        _random("randread", 1),
        {"file": 1.0, "null": 0.9},
        cache="warm",
    ),
    Workload(
        "write-1m",
        "sequential write, 1 MiB, depth 8",
        _sequential("write"),
        {"file": 1.0},
        image="fresh",
        bandwidth=True,
    ),
    Workload(
        "read-1m",
        "sequential read, 1 MiB, depth 8, in page cache",
        _sequential("read"),
        {"file": 1.0, "null": 0.6},
        cache="warm",
        bandwidth=True,
    ),
    Workload(
        "write-flush-1",
        "write + flush, depth 1",
        _random("randwrite", 1, fsync=1),
        {"file": 1.0},
        image="fresh",
    ),
    Workload(
        "write-flush-32",
        "write + flush every 32 writes, depth 32",
        _random("randwrite", 32, fsync=32),
        {"file": 2.0},
        image="fresh",
    ),
    Workload(
        "mix-worn",
        "70/30 mixed random, depth 32, overwritten three times over, GC running",
        _random("randrw", 32, rwmixread=70),
        {"file": 1.5},
        image="worn",
        p99_ratio_max=1.0,
        disk_use_max=1.4,
    ),
    Workload(
        "two-randwrite",
        "two images at once (sum), random write, depth 32",
        _random("randwrite", 32),
        {"file": 4.0},
        image="fresh",
        images=2,
        touch_once=True,
    ),
    Workload(
        "two-randread",
        "two images at once (sum), random read, depth 32, in page cache",
        _random("randread", 32),
        {"file": 1.5},
        cache="warm",
        images=2,
    ),
]


# A second may be this part of the median second, at the least.
SLOWEST_SECOND_MIN = 0.5


def _sustained(name, title, options, floors, **more):
    # As an installation or a database does it: at random places, with repetitions.
    options = {"norandommap": 1, **options} if options["rw"] != "write" else options
    return Workload(
        name, title, options, floors, image="fresh", p99_ratio_max=1.0, sustained=True, **more
    )


SUSTAINED = [
    _sustained(
        "kept-up-randwrite-32",
        "random write 4 KiB, depth 32",
        _random("randwrite", 32),
        {"file": 1.0, "client": 0.6},
    ),
    _sustained(
        "kept-up-randwrite-16k",
        "random write 16 KiB, depth 16",
        {"rw": "randwrite", "bs": "16k", "iodepth": 16},
        {"file": 1.0},
    ),
    _sustained(
        "kept-up-randwrite-1", "random write 4 KiB, depth 1", _random("randwrite", 1), {"file": 1.0}
    ),
    _sustained(
        "kept-up-write-1m",
        "sequential write 1 MiB, depth 8",
        _sequential("write"),
        {"medium": 0.9},
        bandwidth=True,
    ),
    _sustained(
        "kept-up-mix",
        "70/30 mix, depth 32",
        _random("randrw", 32, rwmixread=70),
        {"file": 1.1},
        disk_use_max=1.4,
    ),
    _sustained(
        "kept-up-flush-32",
        "write + flush every 32, depth 32",
        _random("randwrite", 32, fsync=32),
        {"file": 1.5},
    ),
    _sustained(
        "kept-up-flush-128",
        "write + flush every 128, depth 32",
        _random("randwrite", 32, fsync=128),
        {"file": 1.5},
    ),
    _sustained(
        "kept-up-two",
        "two images at once (sum), random write 4 KiB, depth 32",
        _random("randwrite", 32),
        {"file": 1.5},
        images=2,
    ),
]


def named(names, table=None):
    """The workloads with these names, in the order of the table; all of them for no names."""
    table = WORKLOADS if table is None else table
    known = {workload.name for workload in table}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"no such row: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [workload for workload in table if not names or workload.name in names]
