"""Memory that is there when it is needed.

In a guest that gives free pages back to its host, the first use of a page afterwards costs some
10 us: more than the request that is measured. Systems that write into new pages would be measured
against the host's memory, and those that overwrite what is cached would not. So free memory is used
once before each run, for every system alike. It is given back within seconds, so runs are short.
"""

import mmap
import pathlib

REPORTING = pathlib.Path("/sys/module/page_reporting")
PAGE_BYTES = mmap.PAGESIZE
# What a short run can fill.
USED_BYTES_MAX = 2 << 30


def is_given_back():
    """True where the kernel may give free memory back to a host."""
    return REPORTING.exists()


def use_once(size_bytes):
    """Uses so much free memory once, or what a run can fill, where that makes a difference."""
    if not is_given_back():
        return
    size_bytes = min(size_bytes, USED_BYTES_MAX)
    with mmap.mmap(-1, size_bytes) as memory:
        for offset in range(0, size_bytes, PAGE_BYTES):
            memory[offset] = 1
