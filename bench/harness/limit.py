"""A bound on the memory of servers, page cache included: a control group of the kernel's."""

import contextlib
import os
import pathlib
import time

from .process import Failed

# Where the memory controller is mounted, and the file that has the bound: version 2, version 1.
HIERARCHIES = [
    (pathlib.Path("/sys/fs/cgroup"), "memory.max"),
    (pathlib.Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
]
REMOVE_S_MAX = 10.0


@contextlib.contextmanager
def memory(size_bytes):
    """A group whose members have so much memory together; yields its directory, or None for None."""
    if size_bytes is None:
        yield None
        return
    for top, bound in HIERARCHIES:
        group = top / f"marcot-bench-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / bound).exists():
                (group / bound).write_text(str(size_bytes), encoding="ascii")
                break
            group.rmdir()
    else:
        raise Failed("--memory needs root, and a kernel with the memory controller of cgroups")
    try:
        yield group
    finally:
        _remove(group)


def _remove(group):
    """Its members have ended, but the kernel may not have noticed yet."""
    deadline = time.monotonic() + REMOVE_S_MAX
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)


def inside(group, command):
    """The command, to be run as a member of the group."""
    if group is None:
        return command
    enter = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
    return ["sh", "-c", enter, str(group), *command]
