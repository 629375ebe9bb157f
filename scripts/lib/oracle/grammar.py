"""The grammar of `rbd`: its commands with their words and options, read from its own help texts."""

import dataclasses
import pathlib
import re

HELP = pathlib.Path(__file__).resolve().parents[3] / "docs" / "rbd-help.txt"

# Commands that no sequence has, by their first words: some need what marcot does not have, some have
# tests of their own with a device or a clock.
WITHOUT = [
    # Not offered (docs/rbd-compatibility.md).
    "mirror",
    "journal",
    "encryption",
    # Devices: scripts/test.d/mapped-devices.sh.
    "device",
    # What it prints depends on time.
    "trash purge schedule status",
]


@dataclasses.dataclass
class Command:
    """A command: its name, other names, words and options.

    `options` are pairs of a name and whether it takes a value; `short` are their short forms.
    """

    name: str
    aliases: list
    words: list
    options: list
    short: dict


def _aliases(text):
    """{name: [other names]} of the list that `rbd help` prints."""
    found = {}
    for line in text.split("================ rbd help bench")[0].splitlines():
        match = re.match(r"    (\w[\w -]*?) \((\.\.\. )?([\w -]+)\)", line)
        if match:
            name, tail, alias = match.groups()
            found[name] = [name.rsplit(" ", 1)[0] + " " + alias if tail else alias]
    return found


def commands():
    """All commands that sequences are made of."""
    text = HELP.read_text()
    aliases, found = _aliases(text), []
    for block in re.split(r"^================ rbd help ", text, flags=re.MULTILINE)[2:]:
        name, _, rest = block.partition("\n")
        name = name.strip()
        if any(name == word or name.startswith(word + " ") for word in WITHOUT):
            continue
        if name not in aliases and any(name in others for others in aliases.values()):
            continue
        words, _, options = rest.partition("Optional arguments")
        options, short = options.partition("Image Features:")[0], {}
        listed = []
        for letter, option, value in re.findall(
            r"^  (?:-(\w) \[ )?--([a-z-]+)(?: \])?( arg)?", options, re.MULTILINE
        ):
            listed.append((option, bool(value)))
            if letter:
                short[option] = letter
        places = re.findall(r"^  <([a-z0-9-]+)>", words.partition("Positional arguments")[2], re.MULTILINE)
        found.append(Command(name, aliases.get(name, []), places, listed, short))
    return found
