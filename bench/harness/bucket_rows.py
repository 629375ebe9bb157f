"""The rows of `scripts/bench bucket`: which work, on which systems, and what is to be reached."""

import dataclasses

from . import rows
from .figures import paired
from .report import say
from .workloads import Workload


@dataclasses.dataclass(frozen=True)
class Row:
    """A row and its systems. `floors`: (system, beside which, the least median ratio or None)."""

    work: Workload
    systems: list
    ratios: list
    # Of one run at the most: a run whose writes have to be uploaded afterwards, and one that has touched every object
    # of RBD's, are short.
    seconds_max: int | None = None


def _random(direction, **more):
    return {"rw": direction, "bs": "4k", "iodepth": 32, **more}


ROWS = [
    Row(
        Workload(
            "touch",
            "random write 4 KiB, depth 32, first touch of a clone",
            _random("randwrite"),
            {},
            image="fresh",
            touch_once=True,
        ),
        ["local", "bucket-template", "flush-local", "flush-remote", "rbd"],
        [
            ("bucket-template", "rbd", 10.0),
            ("flush-local", "rbd", 10.0),
            ("flush-remote", "rbd", None),
            ("bucket-template", "local", None),
        ],
        seconds_max=3,
    ),
    Row(
        Workload(
            "touch-flush-32",
            "the same with a flush every 32 writes",
            _random("randwrite", fsync=32),
            {},
            image="fresh",
            touch_once=True,
        ),
        ["bucket-template", "flush-local", "flush-remote", "rbd"],
        [
            ("bucket-template", "rbd", 10.0),
            ("flush-local", "rbd", 10.0),
            ("flush-remote", "rbd", 1.0),
        ],
        seconds_max=3,
    ),
    Row(
        Workload(
            "read-warm",
            "random read 4 KiB, depth 32, all read once before",
            _random("randread"),
            {},
            cache="warm",
        ),
        ["local", "bucket-template", "flush-remote", "rbd"],
        [
            ("bucket-template", "local", 0.95),
            ("bucket-template", "rbd", None),
            ("flush-remote", "rbd", None),
        ],
    ),
    Row(
        Workload(
            "read-cold",
            "random read 4 KiB, depth 32, no cache has anything",
            _random("randread"),
            {},
            cache="cold",
            touch_once=True,
        ),
        ["bucket-template", "flush-remote", "rbd"],
        [("bucket-template", "rbd", None), ("flush-remote", "rbd", None)],
    ),
]


def chosen(names):
    """The rows with these names; all of them for no names."""
    known = {row.work.name for row in ROWS}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"no such row: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [row for row in ROWS if not names or row.work.name in names]


def measure(row, systems, settings):
    """One row for the JSON document."""
    say(row.work.title)
    seconds = settings.seconds
    settings.seconds = min(seconds, row.seconds_max or seconds)
    there = [systems[name] for name in row.systems if name in systems]
    runs = rows.measure(row.work, there, settings)
    document = rows.document(row.work, runs, settings)
    settings.seconds = seconds
    document["ratios"] = [
        _ratio(runs, of, to, floor) for of, to, floor in row.ratios if of in runs and to in runs
    ]
    return document


def _ratio(runs, of, to, floor):
    figures = {name: [outcome["figure"] for outcome in runs[name]] for name in (of, to)}
    ratio = paired(figures[of], figures[to], floor)
    return {
        "of": of,
        "to": to,
        "median": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "floor": ratio.floor,
        "met": ratio.met,
    }
