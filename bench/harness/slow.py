"""Reads of what the host has, while others wait for a service of which one request in fifty takes five seconds.

The service is the repository's own (`marcot-s3-test`), which is told to be slow. The image is a clone in its bucket.
Half of the image was read before; reads of that half are measured alone, and then beside reads of the other half.
"""

import contextlib
import os
import threading

from . import fio
from .bucket_systems import Service
from .figures import paired
from .process import Failed, run, start, stop
from .report import say
from .systems import nbd, write_random_file

# What reads keep of their rate, at the least.
KEPT_MIN = 0.9
SLOW_MS = 5000
# Of a thousand requests.
SLOW_PER_MILLE = 20
IMAGE_BYTES = 256 << 20
# Reads of the other half, a second: few, so that they take no processor from those that are measured.
WAITING_IOPS = 20
READS = {"rw": "randread", "bs": "4k", "iodepth": 8}


def measure(settings):
    """Rates alone and beside waiting reads, round by round; a dict for the JSON document."""
    source = settings.directory / "slow.raw"
    write_random_file(source, IMAGE_BYTES)
    with contextlib.ExitStack() as stack:
        service = SlowService(settings, _start(stack, settings))
        service.prepare(source)
        kept = [_round(service, settings, number) for number in range(settings.rounds)]
    ratio = paired([one["beside"] for one in kept], [one["alone"] for one in kept], KEPT_MIN)
    return {
        "rounds": kept,
        "median": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "floor": ratio.floor,
        "met": ratio.met,
    }


class SlowService(Service):
    """A store whose pool lies in the bucket of the small service."""

    def __init__(self, settings, endpoint):
        super().__init__(settings, endpoint)
        self.directory = settings.directory / "slow"
        self.store = self.directory / "store"
        self.environment = {
            **self.environment,
            "MARCOT_STORE": str(self.store),
            "AWS_ACCESS_KEY_ID": "AKMARCOT",
            "AWS_SECRET_ACCESS_KEY": "secret-of-marcot",
        }

    def prepare(self, source):
        """The pool and its template."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.marcot("pool", "create", "gold", "--backend", "s3://bucket/slow")
        self.add_template("gold", "template", source)


def _start(stack, settings):
    program = settings.tools / "marcot-s3-test"
    log = settings.directory / "s3-test.log"
    words = ["--slow-ms", SLOW_MS, "--slow", SLOW_PER_MILLE]
    stack.callback(stop, start(program, *words, log=log))
    for _ in range(500):
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        urls = [line for line in text.splitlines() if line.startswith("http://")]
        if urls:
            return urls[0]
        threading.Event().wait(0.01)
    raise Failed(f"{program} does not start; see {log}")


def _round(service, settings, number):
    name = f"gold/clone-{number}"
    service.clone("gold/template@base", name)
    service.forget_cache()
    half = IMAGE_BYTES // 2
    timed = {**READS, **fio.timed(settings.seconds, False)}
    socket = settings.sockets / "slow"
    with service.server(socket, service.directory / "server.log"):
        target = nbd(socket, name)
        fio.run([target], {"rw": "read", "bs": "1m", "iodepth": 4}, half)
        alone = fio.run([target], timed, half).iops
        others = {**timed, "offset": half, "iodepth": 32, "rate_iops": WAITING_IOPS}
        waiting = threading.Thread(target=_quietly, args=([target], others, half), daemon=True)
        waiting.start()
        beside = fio.run([target], timed, half).iops
        waiting.join()
    say(f"  round {number + 1}: alone {alone:.0f} /s, beside reads that wait {beside:.0f} /s")
    return {"alone": alone, "beside": beside}


def _quietly(*words):
    # The last reads may take longer than the run.
    with contextlib.suppress(Failed):
        fio.run(*words)
