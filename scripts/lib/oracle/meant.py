"""Differences of generated sequences that are meant: docs/rbd-compatibility.md has the list."""

import dataclasses
import re


@dataclasses.dataclass
class Meant:
    """A difference that is meant.

    `command`, `theirs` and `ours` are regular expressions that are found in the command and in the two
    outcomes; `before` is one that is found in the earlier commands. `state` tells that what is there
    differs from then on. Where `lines` is given, only lines that have it differ.
    """

    reason: str
    command: str
    theirs: str = ""
    ours: str = ""
    before: str = ""
    state: bool = False
    lines: str = ""

    def fits(self, lines, theirs, ours):
        """Whether the last command is such a case."""
        if self.lines and self._without(theirs) != self._without(ours):
            return False
        return (
            re.search(self.command, lines[-1])
            and re.search(self.theirs, theirs)
            and re.search(self.ours, ours)
            and re.search(self.before, "\n".join(lines[:-1]))
        )

    def _without(self, text):
        return [line for line in text.splitlines() if not re.search(self.lines, line)]


LIST = [
    Meant(
        "which end of a pipe notices first",
        r"\| rbd import",
        lines=r"^err: rbd: (export(-diff)? error: \(32\)|error writing to destination)",
    ),
    Meant(
        "a rollback shares the blocks of the snapshot",
        r"\b(du|disk-usage|diff|export-diff)\b",
        before=r"snap (rollback|revert)",
        state=True,
    ),
    Meant(
        "RBD takes a missing data pool for a missing namespace",
        "--data-pool",
        "namespace not found - it must be created",
        "create error: .2. No such file",
    ),
    Meant(
        "a deep copy that fails leaves nothing",
        "rbd|audit",
        before=r"deep (cp|copy) .*--image-feature[= ](?!\S*layering)",
        state=True,
    ),
    Meant(
        "a discarded object of a clone has no data",
        r"\b(diff|du|disk-usage|export-diff)\b",
        before=r"(?s)clone .*zero:\d",
        state=True,
    ),
    Meant(
        "a clone of format 2 is copied as one",
        r"\bdeep (cp|copy)\b",
        r"^status: (18|22)\n(.*\n)*err: rbd: deep copy failed",
        state=True,
    ),
    Meant(
        "an image with clones, or in a group, is not migrated",
        "migration prepare",
        ours="^status: 16",
        before=r"\b(clone|group image add)\b",
        state=True,
    ),
    Meant(
        "a migrated clone keeps its format",
        "^audit|info|migration prepare|children|snap (rm|remove|unprotect|purge)|flatten",
        before="migration prepare",
        lines=r"^out: \\t(features|op_features|parent)|^status: (18|22)|^err: rbd: preparing migration failed",
        state=True,
    ),
    Meant("RBD itself ends by a signal", "rbd", r"^status: 13[49]|\*\*\* Caught signal", state=True),
    Meant(
        "an `export-diff` that fails has written nothing",
        "export-diff .*--from-snap .*import-diff",
        "export-diff error",
        "export-diff error",
    ),
    Meant(
        "RBD copies a clone's snapshot without the data of its parent",
        "^audit|export",
        before=r"\b(cp|copy)\b.*(@|--snap)",
        lines=r"^out: (\S+ )?\d+ \d+$",
    ),
    Meant(
        "without data of its own a copy of RBD needs no object",
        "du|diff",
        before=r"\b(cp|copy)\b.*(@|--snap)",
        state=True,
    ),
    Meant(
        "`du` is exact and quick without fast-diff",
        r"^rbd .*\b(du|disk-usage)\b",
        lines="^err: warning: fast-diff map is",
    ),
    Meant(
        "RBD does not look at `--group-namespace` and `--image-namespace`",
        "group image (add|rm|remove) .*--(group|image)-namespace",
        state=True,
    ),
    Meant(
        "`iostat` counts the requests of clients that have an image open; there is no `iotop` without a terminal",
        r"^timeout 1 rbd perf image io",
    ),
    Meant(
        "the time at which a pool was configured last is not noted",
        "config global (ls|list)",
        "rbd_config_pool_override_update_timestamp",
    ),
    Meant(
        "nothing is removed from a pool that never had a schedule",
        "trash purge schedule (rm|remove)",
        "Failed to operate write op for oid rbd_trash_purge_schedule",
        "^$",
    ),
    Meant(
        "a held lock refuses what waits for ever with RBD",
        "rbd ",
        "^status: 124",
        "^status: 30",
        "lock add",
        True,
    ),
]


def reason(lines, theirs, ours):
    """The first difference on the list that fits, or None."""
    return next((meant for meant in LIST if meant.fits(lines, theirs, ours)), None)
