"""scripts/bench bucket: pools in a bucket of radosgw beside RBD on the same Ceph."""

import json

from . import bucket_rows, bucket_systems, guests, report, slow
from .process import Failed
from .report import say

PARTS = ["rows", "slow", "guests"]


def measure(settings, options, top):
    """Everything that was asked for; a dict for the JSON document."""
    found = {}
    if "slow" in options.part:
        say("reads of what the host has, beside reads that wait for a slow service")
        found["slow"] = slow.measure(settings)
    if not {"rows", "guests"} & set(options.part):
        return found
    if not options.endpoint:
        raise Failed("a bucket needs a service: name it with --endpoint URL")
    service = bucket_systems.Service(settings, options.endpoint)
    say("preparing pools and templates")
    service.prepare()
    if "rows" in options.part:
        found["rows"] = _rows(settings, service, bucket_rows.chosen(options.row))
    if "guests" in options.part:
        say(f"guests of one template, {options.guests} at once")
        found["guests"] = guests.measure(service, top, options.boots, options.guests)
    return found


def _rows(settings, service, chosen):
    systems = bucket_systems.all_systems(service)
    if not settings.ceph_conf:
        say("without --ceph-conf, nothing is compared with RBD")
        del systems["rbd"]
    else:
        say("preparing RBD")
        systems["rbd"].prepare()
    return [bucket_rows.measure(row, systems, settings) for row in chosen]


def judged(found):
    """What has a `met`."""
    for row in found.get("rows", []):
        yield from [*row["ratios"], *row["bounds"]]
    if "slow" in found:
        yield found["slow"]
    if "guests" in found:
        yield found["guests"]["bytes"]


def write_report(found, out):
    """JSON and Markdown."""
    report.save(found, out / "bucket.json")
    (out / "bucket.md").write_text(document(found), encoding="utf-8")


def load(out):
    """The figures of earlier runs."""
    try:
        return json.loads((out / "bucket.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def document(found):
    """The report, in Markdown."""
    parts = [
        "# A pool in a bucket, beside RBD\n",
        "Written by `scripts/bench bucket`; [README.md](README.md#bucket) says how, and what the systems are.\n",
        report.machine_lines(found["machine"]),
    ]
    rows = found.get("rows")
    if rows:
        one = rows[0]
        parts.append(
            f"Images of {one['size_bytes'] >> 20} MiB, {one['rounds']} rounds of {one['seconds']} s.\n"
        )
        parts += ["## Ratios and floors\n", report.ratios_table(rows)]
        parts += ["## Figures\n", "Medians, and ± half of the range between the rounds.\n"]
        parts += [report.figures_table(rows)]
        parts += ["## Requests to the service\n", _requests_table(rows)]
    if found.get("slow"):
        parts += ["## Beside a slow service\n", _slow_lines(found["slow"])]
    if found.get("guests"):
        parts += ["## Guests from one template\n", _guests_table(found["guests"])]
    return "\n".join(parts)


def _requests_table(rows):
    cells = []
    for row in rows:
        for name, outcomes in row["runs"].items():
            asked = [outcome["asked"] for outcome in outcomes if outcome.get("asked")]
            if not asked:
                continue
            done = sum(outcome["requests"] for outcome in outcomes)
            sums = {kind: sum(one[kind] for one in asked) for kind in asked[0]}
            kinds = [f"{sums[kind]:,}" for kind in ("put", "get", "list", "delete")]
            sizes = [f"{sums[kind] / (1 << 20):,.0f} MiB" for kind in ("sent_bytes", "received_bytes")]
            cells.append([row["title"], name, f"{done:,}", *kinds, *sizes])
    head = ["work", "system", "requests of fio", "PUT", "GET", "LIST", "DELETE", "sent", "received"]
    return report.table(head, cells)


def _slow_lines(found):
    spread = f"{found['low']:.2f} to {found['high']:.2f}"
    return (
        f"Reads of what the host has keep {found['median']:.2f} ({spread}) of their rate while others wait for a service of "
        f"which {slow.SLOW_PER_MILLE} of 1,000 requests take {slow.SLOW_MS / 1000:g} s "
        f"(at least {found['floor']:g}: {report.verdict(found['met'])}).\n"
    )


def _guests_table(found):
    cells = []
    for count, boots in found["boots"].items():
        first, last = ([boot[key] for boot in boots] for key in ("first_up_s", "last_up_s"))
        sizes = [boot["received_bytes"] for boot in boots]
        cells.append([
            count,
            report.seconds_of(first),
            report.seconds_of(last),
            f"{max(sizes) / (1 << 20):.1f} MiB",
            max(boot["get"] for boot in boots),
        ])
    head = ["guests", "first one up", "last one up", "fetched", "GET"]
    bytes_ = found["bytes"]
    line = (
        f"All of them together have fetched {bytes_['value']:.2f} times the bytes of one "
        f"(at most {bytes_['limit']:g}: {report.verdict(bytes_['met'])}).\n"
    )
    return report.table(head, cells) + "\n" + line
