"""marcot on pools in a bucket of radosgw, and RBD on the same Ceph.

```
templates   in the bucket, flush=remote: the template, and clones of it
fast        in the bucket, flush=local: a template, and clones of it
vms         a directory: local clones of templates/template
bench       a directory: a local template, and clones of it
```
All of them belong to one store, with one cache.
"""

import contextlib
import shutil
import struct

from . import ceph, limit, s3, systems
from .process import Failed, run, server
from .systems import nbd

# The name of the bucket, which is made where it is missing.
BUCKET = "marcot-bench"
REGION = "us-east-1"
TEMPLATE = "template@base"
BUCKET_POOLS = ("templates", "fast")
# What marcot counts, in the order of its file.
KINDS = ("put", "get", "list", "delete", "sent_bytes", "received_bytes")


class Service:
    """The S3 service, and a store of marcot's that has its pools there."""

    def __init__(self, settings, endpoint):
        self.settings = settings
        self.directory = settings.directory / "bucket"
        self.store = self.directory / "store"
        self.endpoint = endpoint
        # Clones and templates that are there, with their pools.
        self.clones = []
        self._templates = []
        self.environment = {
            "MARCOT_STORE": str(self.store),
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def marcot(self, *words):
        """Runs one command of marcot's."""
        return run(self.settings.marcot, *words, env=self.environment)

    def prepare(self):
        """Pools, templates and their snapshots."""
        self.directory.mkdir(parents=True, exist_ok=True)
        s3.make_bucket(self.endpoint, BUCKET, REGION)
        # What an earlier run has left must not be in the way.
        prefix = f"s3://{BUCKET}/{self.settings.sockets.name}"
        self.settings.stack.callback(self._remove)
        for pool, options in zip(BUCKET_POOLS, ([], ["--flush", "local"]), strict=True):
            self.marcot("pool", "create", pool, "--backend", f"{prefix}/{pool}", *options)
        for pool in ("vms", "bench"):
            self.marcot("pool", "create", pool)
        for pool in ("templates", "fast", "bench"):
            self.add_template(pool, "template", self.settings.source)

    def add_template(self, pool, name, source):
        """A protected snapshot with the content of a file."""
        self._templates.append((pool, name))
        self.marcot("import", "--no-progress", source, f"{pool}/{name}")
        self.marcot("snap", "create", "--no-progress", f"{pool}/{name}@base")
        self.marcot("snap", "protect", f"{pool}/{name}@base")

    def _remove(self):
        # As far as it goes: a failure here must not hide the one that led here.
        steps = [("rm", "--no-progress", clone) for clone in self.clones]
        for pool, name in self._templates:
            image = f"{pool}/{name}"
            steps.append(("snap", "unprotect", f"{image}@base"))
            steps.append(("snap", "purge", "--no-progress", image))
            steps.append(("rm", "--no-progress", image))
        steps += [("pool", "rm", pool) for pool in BUCKET_POOLS]
        for words in steps:
            with contextlib.suppress(Failed):
                self.marcot(*words)

    def clone(self, parent, name):
        """Makes a clone."""
        self.marcot("clone", parent, name)
        self.clones.append(name)

    def remove(self, clone):
        """Removes a clone."""
        self.marcot("rm", "--no-progress", clone)
        self.clones.remove(clone)

    def forget_cache(self):
        """Deletes the cache of the host."""
        shutil.rmtree(self.store / "cache", ignore_errors=True)

    def server(self, socket, log):
        """A server of all pools."""
        command = [self.settings.marcot, "serve", "--socket", socket]
        command = limit.inside(self.settings.group, command)
        return server([socket], *command, env=self.environment, log=log)

    def asked(self):
        """What this host has asked of the service so far, by kind: read from the files of marcot's own counts, which
        docs/format.md describes. Asking for them would take requests."""
        sums = [0] * len(KINDS)
        for path in self.store.glob("host/*/requests"):
            counts = struct.unpack(f"<{len(KINDS)}Q", path.read_bytes())
            sums = [one + other for one, other in zip(sums, counts, strict=True)]
        return dict(zip(KINDS, sums, strict=True))


class OnService(systems.System):
    """Clones in one pool of a template in another or the same one."""

    is_peer = False

    def __init__(self, service, name, title, parent, pool):
        self.name = name
        self.title = title
        super().__init__(service.settings)
        self.service = service
        self.parent = parent
        self.pool = pool
        self.environment = service.environment
        self._count = 0

    def prepare(self):
        """The service prepares everything."""

    def content(self):
        return [self.service.store]

    def forget(self):
        self.service.forget_cache()
        if self.settings.ceph_conf:
            ceph.forget_osds(self.settings.ceph_conf)

    def asked(self):
        return self.service.asked()

    @contextlib.contextmanager
    def serve(self, image, count):
        fresh = image == "fresh"
        names = []
        for number in range(count):
            self._count += fresh
            name = f"{self.name}-{image}-{number}" + (f"-{self._count}" if fresh else "")
            name = f"{self.pool}/{name}"
            if name not in self.service.clones:
                self.service.clone(self.parent, name)
            names.append(name)
        socket = self.socket(0)
        with self.service.server(socket, self.service.directory / f"{self.name}.log"):
            yield [nbd(socket, name) for name in names]
        if fresh:
            for name in names:
                self.service.remove(name)


class RbdBeside(ceph.CephRbd):
    """RBD on the Ceph whose radosgw serves the bucket."""

    def forget(self):
        ceph.forget_osds(self.settings.ceph_conf)


def all_systems(service):
    """The systems of the rows, by name."""
    ours = [
        OnService(service, "local", "local clone of a local template", f"bench/{TEMPLATE}", "bench"),
        OnService(service, "bucket-template", "local clone of a bucket's template", f"templates/{TEMPLATE}", "vms"),
        OnService(service, "flush-local", "clone in the bucket, flush=local", f"fast/{TEMPLATE}", "fast"),
        OnService(service, "flush-remote", "clone in the bucket, flush=remote", f"templates/{TEMPLATE}", "templates"),
    ]
    return {system.name: system for system in [*ours, RbdBeside(service.settings)]}
