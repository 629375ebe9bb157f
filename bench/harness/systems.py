"""marcot and its peers: preparing images, starting servers.

Every system can be asked for the same three things: `prepare` once, `serve` an image for a run
(see `Workload.image`), and where the content lies. A server lives as long as one run, so that no
system begins with what an earlier run left in its memory.
"""

import contextlib
import os
import pathlib
import shutil

from . import fio, limit
from .process import Failed, run, server
from .workloads import WORN_PASSES

# Written in each generation of the deep chain, at random.
GENERATION_BYTES = 4 << 20
GENERATIONS = 40
CHUNK_BYTES = 16 << 20


def write_random_file(path, size_bytes):
    """A file of incompressible bytes, all of it allocated and on the medium."""
    with open(path, "wb") as file:
        for _ in range(0, size_bytes, CHUNK_BYTES):
            file.write(os.urandom(CHUNK_BYTES))
        file.truncate(size_bytes)
        os.fsync(file.fileno())


class System:
    """What the rounds need of a system."""

    name = ""
    title = ""
    # Ratios are to this system's figure.
    is_peer = True
    # How often the worn image is overwritten before its first run.
    worn_passes = WORN_PASSES
    # Reads come from somewhere.
    has_content = True

    def __init__(self, settings):
        self.settings = settings
        self.directory = pathlib.Path(settings.directory) / self.name
        self.environment = None
        self._worn = False

    def prepare(self):
        """Makes what all runs share."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def socket(self, number):
        """Where server `number` listens; short, because such paths are bounded."""
        return self.settings.sockets / f"{self.name}-{number}"

    def server(self, sockets, command, **more):
        """A server, within the memory that servers may have."""
        return server(sockets, *limit.inside(self.settings.group, command), **more)

    @contextlib.contextmanager
    def serve(self, image, count):
        """Serves `count` images; yields one dict of fio's options for each."""
        raise NotImplementedError

    def content(self):
        """Files and directories that the page cache is to forget."""
        return [self.directory]

    def forget(self):
        """Empties caches of its own, besides the page cache."""

    def asked(self):
        """What was asked of a service so far: numbers by kind; None where there is no service."""
        return None

    def disk_use(self):
        """Bytes on disk over bytes of live data of the worn image; None where that says nothing."""
        return None

    def wear(self, targets):
        """Overwrites the worn image, the first time that it is served."""
        if not self._worn:
            fio.overwrite(targets, self.worn_passes, self.settings.size_bytes, self.environment)
            self._worn = True


def nbd(socket, export=""):
    """fio's options for an export on a unix socket."""
    return {"ioengine": "nbd", "uri": f"nbd+unix:///{export}?socket={socket}"}


class Marcot(System):
    """Clones of one template, or clones at the end of a long chain."""

    is_peer = False

    def __init__(self, settings, name, title, parent, *, program=None, image=None):
        self.name = name
        # Whatever the row says, its runs are on an image of this kind.
        self.image = image
        self.title = title
        super().__init__(settings)
        self.parent = parent
        # Another build has a store of its own.
        self.program = program or settings.marcot
        self.directory = settings.directory / ("marcot" if program is None else name)
        self._made = 0
        self.store = self.directory / "store"
        self.environment = {"MARCOT_STORE": str(self.store)}

    def marcot(self, *words):
        """Runs one command of marcot's."""
        return run(self.program, *words, env=self.environment)

    def prepare(self):
        super().prepare()
        if self.store.exists():
            return
        self.marcot("pool", "create", "bench")
        self.marcot("import", "--no-progress", self.settings.source, "bench/template")
        self._protect("template", "base")
        parent = "template@base"
        # The clone that is measured is the last generation.
        for generation in range(1, GENERATIONS):
            name = f"generation-{generation}"
            self.marcot("clone", f"bench/{parent}", f"bench/{name}")
            write = ["--io-type", "write", "--io-pattern", "rand", "--io-total", GENERATION_BYTES]
            self.marcot("bench", f"bench/{name}", *write)
            self._protect(name, "base")
            parent = f"{name}@base"

    def _protect(self, name, snap):
        self.marcot("snap", "create", "--no-progress", f"bench/{name}@{snap}")
        self.marcot("snap", "protect", f"bench/{name}@{snap}")

    def _pool(self, image, number):
        # A pool of its own, so that its disk use is that image's.
        return f"{self.name}-worn-{number}" if image == "worn" else "bench"

    def _images(self, image, count):
        for number in range(count):
            pool = self._pool(image, number)
            name = f"{self.name}-{image}-{number}"
            if image == "fresh":
                self._made += 1
                name += f"-{self._made}"
            directory = self.store / "pools" / pool
            if not directory.exists():
                self.marcot("pool", "create", pool)
            if not (directory / "names" / "@" / name).exists():
                self.marcot("clone", f"bench/{self.parent}", f"{pool}/{name}")
            yield f"{pool}/{name}"

    @contextlib.contextmanager
    def serve(self, image, count):
        image = self.image or image
        names = list(self._images(image, count))
        socket = self.socket(0)
        command = [self.program, "serve", "--socket", socket]
        log = self.directory / "server.log"
        with self.server([socket], command, env=self.environment, log=log) as process:
            self.process = process
            targets = [nbd(socket, name) for name in names]
            if image == "worn":
                self.wear(targets)
            yield targets
        if image == "fresh":
            for name in names:
                self.marcot("rm", "--no-progress", name)

    def disk_use(self):
        segments = self.store / "pools" / self._pool("worn", 0) / "segments"
        used = sum(file.stat().st_blocks * 512 for file in segments.rglob("*") if file.is_file())
        # Every block was overwritten, so all that the image holds is its own.
        return used / self.settings.size_bytes


def fresh_clone(settings):
    """marcot, on clones of the template."""
    return Marcot(settings, "fresh", "marcot, fresh clone", "template@base")


def before(settings):
    """Another build of marcot, say the one before a change: a peer."""
    title = f"{settings.before}, fresh clone"
    system = Marcot(settings, "before", title, "template@base", program=settings.before)
    system.is_peer = True
    return system


def deep_clone(settings):
    """marcot, on clones forty generations deep."""
    parent = f"generation-{GENERATIONS - 1}@base"
    return Marcot(settings, "deep", f"marcot, {GENERATIONS} generations deep", parent)


def worn_clone(settings):
    """marcot, on clones that were overwritten at random before the first run."""
    title = "marcot, overwritten twice before"
    system = Marcot(settings, "worn", title, "template@base", image="worn")
    system.worn_passes = 2
    return system


class Nothing(System):
    """A server that stores nothing, one process for each image."""

    has_content = False

    def command(self, socket):
        """The server."""
        raise NotImplementedError

    @contextlib.contextmanager
    def serve(self, image, count):
        sockets = [self.socket(number) for number in range(count)]
        with contextlib.ExitStack() as stack:
            for socket in sockets:
                stack.enter_context(self.server([socket], self.command(socket)))
            yield [nbd(socket) for socket in sockets]


class NbdkitNull(Nothing):
    """What people would call the limit of protocol and client."""

    name = "null"
    title = "nbdkit null"

    def command(self, socket):
        return ["nbdkit", "-f", "-U", socket, "null", f"size={self.settings.size_bytes}"]


class ClientLimit(Nothing):
    """What the client can do: a server of our own that does nothing else than answer at once."""

    name = "client"
    title = "the client's limit"

    def command(self, socket):
        return [self.settings.tools / "client_limit", socket, self.settings.size_bytes]


class FileSystem(System):
    """A server process for each image, which is a file."""

    def file(self, image, number):
        """The file to serve as image `number`, made if need be."""
        raise NotImplementedError

    def command(self, socket, path):
        """The server."""
        raise NotImplementedError

    def clean(self, image, paths):
        """Puts away what was made for one run."""

    @contextlib.contextmanager
    def serve(self, image, count):
        paths = [self.file(image, number) for number in range(count)]
        sockets = [self.socket(number) for number in range(count)]
        log = self.directory / "server.log"
        with contextlib.ExitStack() as stack:
            for socket, path in zip(sockets, paths, strict=True):
                stack.enter_context(self.server([socket], self.command(socket, path), log=log))
            targets = [nbd(socket) for socket in sockets]
            if image == "worn":
                self.wear(targets)
            yield targets
        self.clean(image, paths)


class NbdkitFile(FileSystem):
    """A raw file, fully written: the reference."""

    name = "file"
    title = "nbdkit file"

    def file(self, image, number):
        path = self.directory / f"image-{number}.raw"
        if not path.exists():
            shutil.copyfile(self.settings.source, path)
            os.sync()
        return path

    def command(self, socket, path):
        return ["nbdkit", "-f", "-U", socket, "file", path]


def qemu_nbd(socket, path, image_format):
    """qemu-nbd as people run it: through the page cache, with discard."""
    options = ["--cache=writeback", "--aio=threads", "--discard=unmap", "--persistent"]
    return ["qemu-nbd", *options, "--shared=8", "-f", image_format, "-k", socket, path]


class QemuRaw(NbdkitFile):
    """The same raw file behind qemu-nbd."""

    name = "qemu-raw"
    title = "qemu-nbd, raw file"

    def command(self, socket, path):
        return qemu_nbd(socket, path, "raw")


class Qcow2(FileSystem):
    """An overlay over a raw template."""

    def __init__(self, settings, name, title, options):
        self.name = name
        self.title = title
        super().__init__(settings)
        self.options = options

    def file(self, image, number):
        path = self.directory / f"{image}-{number}.qcow2"
        if image == "fresh" or not path.exists():
            path.unlink(missing_ok=True)
            create = ["qemu-img", "create", "-q", "-f", "qcow2", *self.options]
            run(*create, "-b", self.settings.source, "-F", "raw", path)
        return path

    def command(self, socket, path):
        return qemu_nbd(socket, path, "qcow2")

    def clean(self, image, paths):
        if image == "fresh":
            for path in paths:
                path.unlink()


class XfsReflink(FileSystem):
    """A reflink copy on XFS, on a loop device, behind qemu-nbd."""

    name = "xfs-reflink"
    title = "XFS reflink copy behind qemu-nbd"
    # Template, and two clones overwritten whole, and their metadata.
    ROOM_FACTOR = 4

    def prepare(self):
        super().prepare()
        volume = self.directory / "volume"
        self.mount_point = self.directory / "mnt"
        self.mount_point.mkdir(exist_ok=True)
        with open(volume, "wb") as file:
            file.truncate(self.ROOM_FACTOR * self.settings.size_bytes + (1 << 30))
        run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", volume)
        run("mount", "-o", "loop", volume, self.mount_point)
        self.settings.stack.callback(run, "umount", self.mount_point)
        shutil.copyfile(self.settings.source, self.mount_point / "template")
        os.sync()

    def file(self, image, number):
        path = self.mount_point / f"{image}-{number}"
        if image == "fresh" or not path.exists():
            path.unlink(missing_ok=True)
            run("cp", "--reflink=always", self.mount_point / "template", path)
        return path

    def command(self, socket, path):
        return qemu_nbd(socket, path, "raw")

    def clean(self, image, paths):
        if image == "fresh":
            for path in paths:
                path.unlink()


def peers(settings, names):
    """The peers with these names, in this order."""
    from .ceph import CephRbd

    makers = {
        "file": NbdkitFile,
        "null": NbdkitNull,
        "client": ClientLimit,
        "medium": Medium,
        "qemu-raw": QemuRaw,
        "qcow2": lambda s: Qcow2(s, "qcow2", "qemu-nbd, qcow2 overlay", []),
        "qcow2-subclusters": lambda s: Qcow2(
            s,
            "qcow2-subclusters",
            "qemu-nbd, qcow2 overlay with subclusters",
            ["-o", "extended_l2=on,cluster_size=128k"],
        ),
        "xfs-reflink": XfsReflink,
        "rbd": CephRbd,
    }
    unknown = sorted(set(names) - set(makers))
    if unknown:
        raise Failed(f"no such peer: {', '.join(unknown)}; there are {', '.join(makers)}")
    return [makers[name](settings) for name in names]


class Medium(System):
    """fio itself, past the page cache, on a file of the same disk: what the medium takes."""

    name = "medium"
    title = "the medium, past the page cache"

    @contextlib.contextmanager
    def serve(self, image, count):
        paths = [self.directory / f"image-{number}.raw" for number in range(count)]
        for path in paths:
            if not path.exists():
                shutil.copyfile(self.settings.source, path)
                os.sync()
        yield [{"ioengine": "io_uring", "direct": 1, "filename": path} for path in paths]


PEERS = ["file", "null", "client", "medium", "qemu-raw", "qcow2", "qcow2-subclusters", "xfs-reflink", "rbd"]
