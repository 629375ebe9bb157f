"""scripts/bench: measures marcot and its peers.

  scripts/bench rows      the table of ratios and floors; --sustained: kept up, second by second
  scripts/bench shapes    what must be fast in itself, and flat
  scripts/bench bucket    pools in a bucket of radosgw, beside RBD on the same Ceph
  scripts/bench profile   where instructions, system calls and copies go
  scripts/bench report    tables and pictures from the figures of the runs before
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile

from . import bucket, bucket_rows, guests, limit, picture, report, rows, systems
from .process import Failed
from .report import say
from .workloads import SUSTAINED, WORKLOADS, named

TOP = pathlib.Path(__file__).resolve().parents[2]
UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}


def bytes_of(text):
    """`512M` and the like."""
    digits, unit = text[:-1], text[-1:].lower()
    if unit in UNITS and digits.isdigit():
        return int(digits) << UNITS[unit]
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a size")


def words(text):
    """`a,b`"""
    return [word for word in text.split(",") if word]


def parser():
    """The command line."""
    top = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target"))
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--marcot", type=pathlib.Path, default=target / "release" / "marcot")
    common.add_argument("--tools", type=pathlib.Path, default=target / "release")
    common.add_argument("--out", type=pathlib.Path, default=TOP / "docs" / "bench")
    common.add_argument(
        "--dir", type=pathlib.Path, default=target, help="on the disk to be measured"
    )
    common.add_argument("--keep", action="store_true", help="use what lies in --dir, and keep it")
    commands = top.add_subparsers(dest="command", required=True)
    table = commands.add_parser("rows", parents=[common])
    table.add_argument("--size", type=bytes_of, default=4 << 30)
    table.add_argument("--seconds", type=int, help="of one run [10; sustained: 30]")
    table.add_argument("--rounds", type=int, help="[5; sustained: 3]")
    table.add_argument("--peers", type=words, help=f"{','.join(systems.PEERS)} [file,null; sustained: file,client,medium]")
    table.add_argument("--before", type=pathlib.Path, help="another build of marcot, as a peer")
    names = ",".join(w.name for w in [*WORKLOADS, *SUSTAINED])
    table.add_argument("--row", type=words, default=[], help=names)
    table.add_argument("--depth", type=words, help="fresh,deep,worn [fresh,deep; sustained: all]")
    table.add_argument("--ceph-conf", default=os.environ.get("CEPH_CONF"))
    table.add_argument("--sustained", action="store_true", help="rows of 30 s, second by second")
    table.add_argument("--memory", type=bytes_of, help="servers may have no more than that, page cache included")
    table.add_argument("--quick", action="store_true", help="512M, 2 s, 2 rounds: does it work?")
    shape = commands.add_parser("shapes", parents=[common])
    shape.add_argument("--quick", action="store_true", help="smaller ranges: does it work?")
    shape.add_argument("--shape", type=words, default=[], help="only these")
    beside = commands.add_parser("bucket", parents=[common])
    beside.add_argument("--endpoint", default=os.environ.get("AWS_ENDPOINT_URL_S3"), help="URL of the S3 service; its credentials are expected in the environment")
    beside.add_argument("--ceph-conf", default=os.environ.get("CEPH_CONF"), help="the same Ceph, for RBD")
    beside.add_argument("--size", type=bytes_of, default=2 << 30)
    beside.add_argument("--seconds", type=int, default=5, help="of one run [5]")
    beside.add_argument("--rounds", type=int, default=3, help="[3]")
    beside.add_argument("--boots", type=int, default=1, help="rounds of one guest and of many [1]")
    beside.add_argument("--guests", type=int, default=guests.GUESTS, help=f"at once [{guests.GUESTS}]")
    beside.add_argument("--part", type=words, default=bucket.PARTS, help=",".join(bucket.PARTS))
    beside.add_argument("--row", type=words, default=[], help=",".join(row.work.name for row in bucket_rows.ROWS))
    beside.add_argument("--quick", action="store_true", help="64M, 1 s, 1 round: does it work?")
    profile = commands.add_parser("profile", parents=[common])
    profile.add_argument("--requests", type=int, default=2000)
    profile.add_argument("--size", type=bytes_of, default=256 << 20)
    commands.add_parser("report", parents=[common])
    return top


DEFAULTS = {
    False: {"seconds": 10, "rounds": 5, "peers": ["file", "null"], "depth": ["fresh", "deep"]},
    True: {
        "seconds": 30,
        "rounds": 3,
        "peers": ["file", "client", "medium"],
        "depth": ["fresh", "deep", "worn"],
    },
}


def with_defaults(options):
    """Fills in what nobody said, of the table."""
    for name, value in DEFAULTS[getattr(options, "sustained", False)].items():
        if getattr(options, name, value) is None:
            setattr(options, name, value)
    return options


class Settings:
    """What every part is told; also owns what has to be put away at the end."""

    def __init__(self, options, stack):
        self.options = options
        self.stack = stack
        self.marcot = options.marcot
        self.tools = options.tools
        self.before = getattr(options, "before", None)
        self.memory_bytes = getattr(options, "memory", None)
        # The control group that servers are members of.
        self.group = stack.enter_context(limit.memory(self.memory_bytes))
        # A directory of our own inside, because it is removed.
        self.directory = options.dir.resolve() / "marcot-bench"
        self.size_bytes = getattr(options, "size", 0)
        self.seconds = getattr(options, "seconds", 0)
        self.rounds = getattr(options, "rounds", 0)
        self.ceph_conf = getattr(options, "ceph_conf", None)
        self.source = self.directory / "source.raw"
        if not options.keep:
            shutil.rmtree(self.directory, ignore_errors=True)
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        # The path of a unix socket is at most 107 bytes long.
        sockets = tempfile.TemporaryDirectory(prefix="marcot-bench-")
        self.sockets = pathlib.Path(stack.enter_context(sockets))


def make_source(settings):
    """The content of the template, of the size that was asked for."""
    if settings.source.exists() and settings.source.stat().st_size == settings.size_bytes:
        return
    if any(settings.directory.iterdir()):
        raise Failed(f"{settings.directory} holds images of another size; leave out --keep")
    systems.write_random_file(settings.source, settings.size_bytes)


def measure_rows(settings, options):
    """The table."""
    if options.quick:
        # A series needs some seconds.
        settings.size_bytes, settings.rounds = 512 << 20, 2
        settings.seconds = 5 if options.sustained else 2
    chosen = named(options.row, SUSTAINED if options.sustained else WORKLOADS)
    makers = {
        "fresh": systems.fresh_clone,
        "deep": systems.deep_clone,
        "worn": systems.worn_clone,
    }
    ours = [makers[depth](settings) for depth in options.depth]
    peers = systems.peers(settings, options.peers)
    if options.before:
        peers.insert(0, systems.before(settings))
    make_source(settings)
    for system in [*ours, *peers]:
        say(f"preparing {system.title}")
        system.prepare()
    # Each of ours has a peer beside it, in every round.
    order = [system for pair in zip(ours, peers, strict=False) for system in pair]
    order += [system for system in [*ours, *peers] if system not in order]
    found = []
    for workload in chosen:
        say(workload.title)
        found.append(rows.document(workload, rows.measure(workload, order, settings), settings))
    return found


def measure_bucket(settings, options):
    """Pools in a bucket; a document of its own."""
    if options.quick:
        settings.size_bytes, settings.seconds, settings.rounds = 64 << 20, 1, 1
    found = {**bucket.load(options.out), "machine": report.machine(settings)}
    make_source(settings)
    now = bucket.measure(settings, options, TOP)
    order = [row.work.name for row in bucket_rows.ROWS]
    if "rows" in now:
        now["rows"] = merged(found.get("rows", []), now["rows"], "name", order)
    found.update(now)
    bucket.write_report(found, options.out)
    print(bucket.document(found))
    return 1 if any(entry["met"] is False for entry in bucket.judged(now)) else 0


def merged(before, now, key, order):
    """What was measured now, with what was measured before and not now; in the order of `order`."""
    entries = {entry[key]: entry for entry in [*before, *now]}
    known = [name for name in order if name in entries]
    return [entries[name] for name in [*known, *(name for name in entries if name not in known)]]


def write_report(data, out):
    """JSON, Markdown and pictures."""
    report.save(data, out / "results.json")
    (out / "results.md").write_text(report.document(data), encoding="utf-8")
    peers = list(dict.fromkeys(r["to"] for row in data.get("rows", []) for r in row["ratios"]))
    for peer in peers:
        title = f"Ratios to {peer}"
        (out / f"ratios-{peer}.svg").write_text(picture.ratios(data["rows"], peer, title))
    if data.get("sustained"):
        (out / "sustained.svg").write_text(picture.series(data["sustained"]))
    drawn = picture.shapes(data.get("shapes", []), "Time, whatever the size")
    if drawn:
        (out / "shapes.svg").write_text(drawn)


def load(out):
    """The figures of earlier runs."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((out / "results.json").read_text(encoding="utf-8"))
    return {}


def main():
    """Runs one command; status 1 where a bound is not met, 2 where nothing could be measured."""
    options = with_defaults(parser().parse_args())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    options.out.mkdir(parents=True, exist_ok=True)
    data = load(options.out)
    if options.command == "report":
        write_report(data, options.out)
        return 0
    with contextlib.ExitStack() as stack:
        settings = Settings(options, stack)
        if options.command == "bucket":
            return measure_bucket(settings, options)
        data["machine"] = report.machine(settings)
        if options.command == "rows":
            found = measure_rows(settings, options)
            part, table = ("sustained", SUSTAINED) if options.sustained else ("rows", WORKLOADS)
            order = [workload.name for workload in table]
            data[part] = merged(data.get(part, []), found, "name", order)
        elif options.command == "shapes":
            from . import shapes

            found = shapes.measure(settings, options)
            data["shapes"] = merged(data.get("shapes", []), found, "title", [])
        else:
            from . import profile

            (options.out / "profile.md").write_text(profile.measure(settings, options))
            return 0
    write_report(data, options.out)
    print(report.document(data))
    return 1 if any(entry["met"] is False for entry in judged(found)) else 0


def judged(found):
    """What has a `met` among rows or shapes."""
    for entry in found:
        yield from [entry] if "met" in entry else [*entry["ratios"], *entry["bounds"]]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
