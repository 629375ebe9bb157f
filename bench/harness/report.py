"""What people read: lines while it runs, and tables at the end."""

import json
import os
import platform
import statistics
import sys
import time


def say(text):
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def verdict(met):
    """A word for a bound."""
    return {True: "yes", False: "**no**", None: ""}[met]


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def figure(row, outcomes):
    """Median and spread of a system's figure."""
    values = [outcome["figure"] for outcome in outcomes]
    median = statistics.median(values)
    apart = (max(values) - min(values)) / median
    if row["unit"] == "bytes/s":
        return f"{median / (1 << 20):,.0f} MiB/s ±{apart / 2:.0%}"
    return f"{median:,.0f} /s ±{apart / 2:.0%}"


def seconds_of(values):
    """Median and spread of times."""
    median = statistics.median(values)
    return f"{median:.1f} s ({min(values):.1f} to {max(values):.1f})"


def figures_table(rows):
    """What every system did: medians."""
    names = list(dict.fromkeys(name for row in rows for name in row["runs"]))
    cells = [
        [row["title"], *(figure(row, row["runs"][n]) if n in row["runs"] else "" for n in names)]
        for row in rows
    ]
    return table(["work", *names], cells)


def ratios_table(rows):
    """Every ratio, with its floor."""
    cells = []
    for row in rows:
        for ratio in row["ratios"]:
            floor = "" if ratio["floor"] is None else f"{ratio['floor']:g}"
            spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
            pair = f"{ratio['of']} / {ratio['to']}"
            median = f"{ratio['median']:.2f}"
            cells.append([row["title"], pair, median, spread, floor, verdict(ratio["met"])])
        for bound in row["bounds"]:
            value, limit = f"{bound['value']:.2f}", f"at most {bound['limit']:g}"
            pair = f"{bound['of']}: {bound['what']}"
            cells.append([row["title"], pair, value, "", limit, verdict(bound["met"])])
    return table(["work", "ratio", "median", "spread", "floor", "met"], cells)


def shapes_table(shapes):
    """What must be fast and flat."""
    cells = []
    for shape in shapes:
        steps = ", ".join(f"{p['at']}: {p['shown']}" for p in shape["points"])
        cells.append([shape["title"], steps, shape["limit_shown"], verdict(shape["met"])])
    return table(["what", "measured", "bound", "met"], cells)


def machine_lines(machine):
    """The machine, for the head of a document."""
    words = [f"{machine['cpu']}, {machine['cores']} cores", machine["kernel"]]
    words += [machine["file_system"], machine["fio"], machine["marcot"]]
    if machine["idle_share_before"] < IDLE_SHARE_MIN:
        words.append(f"**not at rest: {machine['idle_share_before']:.0%} idle before the run**")
    return "Measured on: " + "; ".join(words) + ".\n"


def document(data):
    """The whole report, in Markdown."""
    parts = ["# Measurements\n", "Written by `scripts/bench`; [README.md](README.md) says how.\n"]
    parts.append(machine_lines(data["machine"]))
    if data.get("rows"):
        ways = {(r["size_bytes"], r["rounds"], r["seconds"]) for r in data["rows"]}
        for size_bytes, rounds, seconds in sorted(ways):
            parts.append(f"Image of {size_bytes >> 20} MiB, {rounds} rounds of {seconds} s.\n")
        parts += ["## Ratios and floors\n", ratios_table(data["rows"])]
        parts += ["![ratios to nbdkit file](ratios-file.svg)\n"]
        parts += ["## Figures\n", "Medians, and ± half of the range between the rounds.\n"]
        parts += [figures_table(data["rows"])]
    if data.get("sustained"):
        parts += ["## Kept up\n"]
        ways = {}
        for row in data["sustained"]:
            ways.setdefault((row["rounds"], row["seconds"]), []).append(row["title"])
        for (rounds, seconds), titles in ways.items():
            parts.append(f"{rounds} x {seconds} s: {'; '.join(titles)}.\n")
        parts += [ratios_table(data["sustained"]), "![each second](sustained.svg)\n"]
        parts += [figures_table(data["sustained"])]
    if data.get("shapes"):
        parts += ["## Shapes\n", shapes_table(data["shapes"]), "![shapes](shapes.svg)\n"]
    return "\n".join(parts)


def _first_value(path, key):
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return "unknown"


def machine(settings):
    """What the figures depend on."""
    from .process import run

    directory = str(settings.directory)
    idle = idle_share()
    if idle < IDLE_SHARE_MIN:
        say(f"the machine is not at rest ({idle:.0%} idle): figures will mean little")
    return {
        "idle_share_before": idle,
        "cpu": _first_value("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "kernel": platform.platform(),
        "file_system": run("findmnt", "-n", "-o", "FSTYPE", "-T", directory).strip(),
        "fio": run("fio", "--version").strip(),
        "nbdkit": run("nbdkit", "--version").strip(),
        "marcot": run(settings.marcot, "--version").strip(),
    }


# A machine this much at rest is quiet enough to be measured.
IDLE_SHARE_MIN = 0.9
IDLE_LOOK_S = 2.0


def _processor_ticks():
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return sum(ticks), ticks[3]


def idle_share():
    """How much of the processors nobody uses, looked at for a while."""
    before, idle_before = _processor_ticks()
    time.sleep(IDLE_LOOK_S)
    after, idle_after = _processor_ticks()
    return (idle_after - idle_before) / max(after - before, 1)


def save(data, path):
    """Writes the JSON document."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
