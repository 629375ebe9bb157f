"""Guests that start from one template in a bucket: how long until they are up, and what is fetched.

A guest is up when its own process 1 runs the job (`GUEST-START` on its console): the kernel, the root file system
and the first programs have been read. The guests are emulated (scripts/lib/guest.sh), on the processors that the
server needs too.
"""

import contextlib
import time

from .process import Failed, run, start, stop
from .report import say

# The bytes that ten guests may fetch, to those of one.
BYTES_RATIO_MAX = 1.5
GUESTS = 10
UP = "GUEST-START"
UP_S_MAX = 600.0
LOOK_S = 0.02


def template(settings, top):
    """A disk that boots, made once."""
    path = settings.directory / "guest.raw"
    if not path.exists():
        run("bash", "-c", f'. "{top}/scripts/lib/guest.sh" && guest_template "{path}"')
    return path


def measure(service, top, rounds, guests):
    """Boots one guest, then many, each time with nothing in the host's cache; a dict for the JSON document."""
    service.add_template("templates", "guest", template(service.settings, top))
    counts = sorted({1, guests})
    found = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts:
            found[count].append(_boot(service, top, count, f"{number}-{count}"))
    most = {count: max(boot["received_bytes"] for boot in found[count]) for count in counts}
    value = most[guests] / most[1]
    return {
        "rounds": rounds,
        "boots": {str(count): found[count] for count in counts},
        "bytes": {"value": value, "limit": BYTES_RATIO_MAX, "met": value <= BYTES_RATIO_MAX},
    }


def _boot(service, top, count, label):
    names = [f"vms/guest-{label}-{number}" for number in range(count)]
    for name in names:
        service.clone("templates/guest@base", name)
    service.forget_cache()
    before = service.asked()
    socket = service.settings.sockets / "guests"
    with contextlib.ExitStack() as stack:
        stack.enter_context(service.server(socket, service.directory / "guests.log"))
        began = time.monotonic()
        consoles = [_start(stack, service, top, socket, name) for name in names]
        up = _await(consoles, began)
    after = service.asked()
    for name in names:
        service.remove(name)
    asked = {kind: after[kind] - before[kind] for kind in after}
    say(f"  {count} guests: first up after {up[0]:.1f} s, last after {up[-1]:.1f} s; {asked['received_bytes'] >> 10} KiB")
    return {"first_up_s": up[0], "last_up_s": up[-1], **asked}


def _start(stack, service, top, socket, name):
    job = service.settings.directory / "guest.job"
    job.write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
    console = service.settings.directory / f"{name.replace('/', '-')}.console"
    disk = f"nbd+unix:///{name}?socket={socket}"
    script = f'. "{top}/scripts/lib/guest.sh" && guest_run --disk "{disk}" --job "{job}" --log "{console}"'
    process = start("bash", "-c", script)
    stack.callback(stop, process)
    return console, process


def _await(consoles, began):
    """When each guest was up, in seconds, the first one first."""
    up = {}
    while len(up) < len(consoles):
        for console, process in consoles:
            if console in up:
                continue
            if console.exists() and UP in console.read_text(errors="replace"):
                up[console] = time.monotonic() - began
            elif process.poll() is not None:
                raise Failed(f"a guest has ended before it was up; see {console}")
        if time.monotonic() - began > UP_S_MAX:
            raise Failed(f"{len(consoles) - len(up)} guests are not up after {UP_S_MAX:.0f} s")
        time.sleep(LOOK_S)
    return sorted(up.values())
