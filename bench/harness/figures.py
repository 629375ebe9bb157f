"""Medians of paired ratios, their spread, and floors."""

import dataclasses
import statistics


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


def bounds(workload, runs):
    """The row's bounds besides the floors: {marcot: [Bound]}."""
    found = {}
    for name, outcomes in runs.items():
        if outcomes[0]["peer"]:
            continue
        rows = []
        if workload.p99_ratio_max is not None and "file" in runs:
            pairs = zip(outcomes, runs["file"], strict=True)
            value = statistics.median(a["p99_us"] / b["p99_us"] for a, b in pairs)
            rows.append(Bound("p99 to nbdkit file's", value, workload.p99_ratio_max, ""))
        if workload.disk_use_max is not None:
            value = max(o["disk_use"] for o in outcomes)
            rows.append(Bound("disk use to live data", value, workload.disk_use_max, ""))
        if rows:
            found[name] = rows
    return found
