"""The profile: what a request costs, and the least that it could cost on this machine."""

from . import client, cost, fio, report
from .process import run, server
from .systems import nbd

FUNCTIONS_SHOWN = 12
SECONDS = 3
PLAIN = {"MARCOT_IO": "plain"}

# What the work of one request cannot do without, by the names that the tool `limits` prints, with
# how many requests share it.
FLOORS = {
    "read-1": [
        ("socket round trip of a 4 KiB read", 1),
        ("pread of 4 KiB in page cache", 1),
        ("crc32c of 4 KiB", 1),
    ],
    "read-32": [
        ("send and receive of 4 KiB without a wake-up", 1),
        ("4 KiB of a batch of 32 reads in page cache", 1),
        ("crc32c of 4 KiB", 1),
    ],
    "write-1": [
        ("socket round trip of a 4 KiB write", 1),
        ("crc32c of 4 KiB", 1),
        ("append of a group of 1 block", 1),
    ],
    "write-32": [
        ("send and receive of 4 KiB without a wake-up", 1),
        ("crc32c of 4 KiB", 1),
        ("append of a group of 32 blocks", 32),
    ],
}

HOW = """\
Instructions are those of the server process under callgrind, without the kernel's, with reads
done plainly; callgrind's processor lacks AVX-512, so CRC-32C takes another path there than it
takes natively. System calls are those of the server under strace, as it runs by default. Copies
are the bytes that receive, send, read and write calls moved between process and kernel, over the
bytes of data that the client asked for (reads done plainly, so that they show). What the process
copies by itself shows as instructions of memcpy and memmove.
"""

LIMIT = """\
The limit is the sum of what cannot be left out, measured alone on the same machine by
`bench/src/bin/limits.rs`; the time is that of fio against a server that holds the image in the
page cache, one over requests a second. At depth 32 client and server work side by side, so that a
request may take less than the sum of both.
"""


def limits(settings):
    """The machine's least times in ns, by name."""
    printed = run(settings.tools / "limits", settings.directory)
    return {name: float(ns) for name, ns in (line.split("\t") for line in printed.splitlines())}


def measured_ns(probe, case):
    """Nanoseconds from request to request that fio sees."""
    name = f"cost/measured-{case.name}"
    run(probe.marcot, "clone", "cost/template@base", name, env=probe.environment)
    direction = "randwrite" if case.command == client.WRITE else "randread"
    command = [probe.marcot, "serve", "--socket", probe.socket]
    with server([probe.socket], *command, env=probe.environment):
        targets = [nbd(probe.socket, name)]
        fio.read_all(targets, cost.IMAGE_BYTES)
        options = {"rw": direction, "bs": "4k", "iodepth": case.depth}
        options.update(fio.timed(SECONDS, touch_once=False))
        return 1e9 / fio.run(targets, options, cost.IMAGE_BYTES).iops


def measure(settings, options):
    """The document, in Markdown."""
    least = limits(settings)
    probe = cost.Probe(settings.marcot, settings.directory, settings.sockets)
    summary, limit_rows, details = [], [], []
    for case in cost.CASES:
        report.say(f"profile of {case.title}")
        instructions, spent = probe.instructions(case, options.requests)
        calls, _ = probe.system_calls(case, options.requests)
        _, moved = probe.system_calls(case, options.requests, PLAIN)
        names = sorted((name for name in calls if calls[name] >= 0.005), key=lambda n: -calls[n])
        by_name = ", ".join(f"{name} {calls[name]:.2f}" for name in names)
        summary.append(
            [
                case.title,
                f"{instructions:,.0f}",
                f"{sum(calls.values()):.2f}",
                by_name,
                f"{sum(moved.values()):.2f}",
                f"{copying(spent):,.0f}",
            ]
        )
        floor = sum(least[name] / share for name, share in FLOORS[case.name])
        measured = measured_ns(probe, case)
        parts = " + ".join(
            f"{name} {least[name] / share:,.0f}" for name, share in FLOORS[case.name]
        )
        times = [f"{floor:,.0f} ns", parts, f"{measured:,.0f} ns", f"{measured / floor:.2f}"]
        limit_rows.append([case.title, *times])
        details.append(f"### {case.title}\n\n" + functions_table(spent, instructions))
    return "\n".join(
        [
            "# Where the time of a request goes\n",
            "Written by `scripts/bench profile`.\n",
            report.machine_lines(report.machine(settings)),
            "## What a request costs\n",
            HOW,
            report.table(
                [
                    "request",
                    "instructions",
                    "system calls",
                    "by name",
                    "copies of each byte",
                    "memcpy and memmove",
                ],
                summary,
            ),
            "## The physical limit\n",
            LIMIT,
            report.table(["request", "limit", "made of (ns)", "time", "over the limit"], limit_rows),
            report.table(
                ["measured alone", "ns"], [[name, f"{ns:,.0f}"] for name, ns in least.items()]
            ),
            "## Instructions of one request, by function\n",
            *details,
        ]
    )


def copying(spent):
    """Instructions of one request in the functions that copy."""
    return sum(n for name, n in spent.items() if "memcpy" in name or "memmove" in name)


def functions_table(spent, total):
    """The functions that take most."""
    most = sorted(spent.items(), key=lambda item: -item[1])[:FUNCTIONS_SHOWN]
    rows = [[f"`{name[:90]}`", f"{n:,.0f}", f"{n / total:.0%}"] for name, n in most]
    return report.table(["function", "instructions", "share"], rows)
