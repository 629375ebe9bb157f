"""Medians of paired ratios, their spread, and floors."""

import dataclasses
import statistics

from .workloads import SLOWEST_SECOND_MIN


@dataclasses.dataclass(frozen=True)
class Ratio:
    """marcot's figure over a peer's, round by round."""

    median: float
    low: float
    high: float
    floor: float | None

    @property
    def met(self):
        """Whether the floor is reached; None where there is none."""
        return None if self.floor is None else self.median >= self.floor


def paired(ours, theirs, floor=None):
    """The ratio of runs that lay side by side; both lists are in the order of the rounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), floor)


def spread(values):
    """How far apart the rounds were: (highest - lowest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A figure that must not be above a limit."""

    what: str
    value: float
    limit: float
    unit: str

    @property
    def met(self):
        """Whether it is within the limit."""
        return self.value <= self.limit


def ratios(workload, runs):
    """Every marcot system over every peer: {(marcot, peer): Ratio}.

    `runs` is {system: [outcome of round 0, ...]}.
    """
    figures = {name: [o["figure"] for o in outcomes] for name, outcomes in runs.items()}
    ours = [name for name, outcomes in runs.items() if not outcomes[0]["peer"]]
    peers = [name for name, outcomes in runs.items() if outcomes[0]["peer"]]
    return {
        (a, b): paired(figures[a], figures[b], workload.floors.get(b)) for a in ours for b in peers
    }


def slowest_second(outcome):
    """The slowest second of a run, as a part of its median second."""
    return min(outcome["series"]) / statistics.median(outcome["series"])


def bounds(workload, runs):
    """The row's bounds besides the floors: {marcot: [Bound]}."""
    found = {}
    for name, outcomes in runs.items():
        if outcomes[0]["peer"]:
            continue
        rows = []
        if workload.p99_ratio_max is not None and "file" in runs:
            at, what = ("p999_us", "p99.9") if workload.sustained else ("p99_us", "p99")
            pairs = zip(outcomes, runs["file"], strict=True)
            value = statistics.median(a[at] / b[at] for a, b in pairs)
            rows.append(Bound(f"{what} to nbdkit file's", value, workload.p99_ratio_max, ""))
        if workload.sustained:
            value = statistics.median(1 / max(slowest_second(o), 0.001) for o in outcomes)
            rows.append(
                Bound("median second to the slowest", value, 1 / SLOWEST_SECOND_MIN, "")
            )
        if workload.disk_use_max is not None:
            value = max(o["disk_use"] for o in outcomes)
            rows.append(Bound("disk use to live data", value, workload.disk_use_max, ""))
        if rows:
            found[name] = rows
    return found
