"""Words and option values for generated commands: mostly valid, some not."""

import shlex

MIB = 1 << 20
OBJECT_BYTES = 4 * MIB

POOLS = ["rbd", "tank"]
NAMESPACES = ["ns", "deep"]
IMAGES = ["a", "b", "c", "kid", "vm-100-disk-0"]
SNAPSHOTS = ["s", "t", "u", "before.upgrade"]
GROUPS = ["g", "h"]
ODD_SPECS = ["", "rbd/", "/a", "a@", "@s", "a@s@t", "a/b/c/d", "rbd//a", "nopool/a", "rbd/nons/a", "rbd/ns/"]
FEATURES = ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "striping"]
FEATURE_SETS = [
    "layering",
    "layering,exclusive-lock",
    "layering,exclusive-lock,object-map,fast-diff",
    "layering,exclusive-lock,object-map,fast-diff,deep-flatten",
    "layering,deep-flatten",
    "exclusive-lock",
]
CONFIG_KEYS = [
    "rbd_cache",
    "rbd_cache_size",
    "rbd_readahead_max_bytes",
    "rbd_qos_iops_limit",
    "rbd_default_order",
    "rbd_cache_policy",
    "rbd_concurrent_management_ops",
]
CONFIG_VALUES = ["true", "false", "4096", "64M", "1.5", "writeback", "abc", "-1"]
META_KEYS = ["k", "owner", "with blank", "conf_rbd_cache"]
META_VALUES = ["v", "true", "two words", "7"]

# Values of options: valid ones, and ones that are refused.
VALUES = {
    "format": (["json", "json", "xml", "plain"], ["yaml", "JSON", ""]),
    "object-size": (["4M", "2M", "1M", "4194304"], ["3K", "64M", "abc", "5M"]),
    "order": (["22", "21", "20"], ["11", "26", "x"]),
    "image-feature": (FEATURE_SETS, ["bogus", "object-map", "fast-diff", ""]),
    "stripe-unit": (["65536", "64K", "1M"], ["3000", "0", "x"]),
    "stripe-count": (["1", "2", "4"], ["0", "x"]),
    "data-pool": (["tank", "rbd"], ["nopool"]),
    "image-format": (["2"], ["1", "3"]),
    "sparse-size": (["4K", "64K", "4M"], ["3K", "0", "x"]),
    "limit": (["0", "1", "2", "10"], ["x"]),
    "shared": (["tag1", "tag2"], []),
    "expires-at": (["tomorrow", "1 week", "now", "yesterday"], ["bogus"]),
    "expired-before": (["tomorrow", "now", "yesterday"], ["bogus"]),
    "threshold": (["0.9", "0.0"], ["2", "x"]),
    "export-format": (["1", "2"], ["3", "x"]),
    "snap-id": (["4"], ["99", "x"]),
    "image-id": (["12345"], [""]),
    "rbd-default-clone-format": (["2", "2", "1", "auto"], ["3"]),
    "io-type": (["read", "read", "read"], ["x", ""]),
    "io-size": (["4K", "4096", "64K", "1M"], ["0", "5G", "x"]),
    "io-threads": (["1", "2", "16"], ["0", "x"]),
    "io-total": (["64K", "1M", "8M"], ["x"]),
    "io-pattern": (["seq", "rand", "full-seq"], ["x"]),
    "rw-mix-read": (["0", "50", "100"], ["101", "x"]),
    "iterations": (["1", "2"], ["0", "x"]),
    "sort-by": (["write-ops", "read-bytes", "read-latency"], ["x"]),
    "journal-splay-width": (["4"], ["x"]),
    "journal-object-size": (["1M"], ["x"]),
}
SIZES = ["8M", "16M", "4M", "12M", "8", "16", "8388608B"]
BAD_SIZES = ["0", "8m", "-1", "1.5G", "abc", "", "8MB", "8MiB"]


def quoted(words):
    """A command line; words with `$(` are for the shell."""
    return " ".join(word if "$(" in word else shlex.quote(word) for word in words)


def size_bytes(text):
    """The bytes that `--size` names."""
    if text.endswith("B"):
        return int(text[:-1])
    return int(text.rstrip("M")) * MIB
