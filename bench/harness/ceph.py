"""Ceph RBD, on a cluster that runs already and is named by its configuration file."""

import contextlib

from .process import Failed, run
from .systems import System

POOL = "rbd"
TEMPLATE = "marcot-bench-template"
SNAP = "base"


class CephRbd(System):
    """Clones of one protected snapshot, through librbd in fio itself."""

    name = "rbd"
    title = "Ceph RBD"

    def __init__(self, settings):
        super().__init__(settings)
        if not settings.ceph_conf:
            raise Failed("the peer rbd needs a cluster: name its configuration with --ceph-conf")
        self.environment = {"CEPH_CONF": settings.ceph_conf}
        self._made = []

    def rbd(self, *words):
        """Runs one command of rbd's."""
        return run("rbd", *words, env=self.environment)

    def prepare(self):
        super().prepare()
        self.settings.stack.callback(self._remove)
        self.rbd("import", self.settings.source, f"{POOL}/{TEMPLATE}")
        self.rbd("snap", "create", f"{POOL}/{TEMPLATE}@{SNAP}")
        self.rbd("snap", "protect", f"{POOL}/{TEMPLATE}@{SNAP}")

    def _remove(self):
        # As far as it goes: a failure here must not hide the one that led here.
        for words in [
            *(("rm", f"{POOL}/{name}") for name in self._made),
            ("snap", "unprotect", f"{POOL}/{TEMPLATE}@{SNAP}"),
            ("snap", "purge", f"{POOL}/{TEMPLATE}"),
            ("rm", f"{POOL}/{TEMPLATE}"),
        ]:
            with contextlib.suppress(Failed):
                self.rbd(*words)

    @contextlib.contextmanager
    def serve(self, image, count):
        names = [f"marcot-bench-{image}-{number}" for number in range(count)]
        for name in names:
            if name not in self._made:
                self.rbd("clone", f"{POOL}/{TEMPLATE}@{SNAP}", f"{POOL}/{name}")
                self._made.append(name)
        client = {"ioengine": "rbd", "clientname": "admin", "pool": POOL}
        yield [{**client, "rbdname": name} for name in names]
        if image == "fresh":
            for name in names:
                self.rbd("rm", f"{POOL}/{name}")
                self._made.remove(name)

    def content(self):
        # A cluster's caches are its own: cold reads find what its daemons keep.
        return []


def forget_osds(ceph_conf):
    """Drops what the OSDs keep in memory."""
    run("ceph", "tell", "osd.*", "cache", "drop", env={"CEPH_CONF": ceph_conf})
