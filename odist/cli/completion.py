"""Tab completion of `odist train`: groups with their choices, keys with their values.

Reads file names of conf/ and the schema; imports no Hydra, so that a tab answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from odist import registry
from odist.cli.train_arguments import GROUPS
from odist.config.read import known_keys, schema_keys

# Choices of a group that other packages add without a YAML file: their parts of these kinds.
KINDS_OF_GROUPS = {
    "task": ("tasks",),
    "model": ("models",),
    "algorithm": ("strategies", "teachers"),
    "exchange": ("exchange",),
}


def complete_overrides(incomplete: str) -> list[str]:
    """Candidates for the word under the cursor.

    Bash cuts a word at `=` and replaces only what follows, so there the part after it is returned;
    other shells get whole words.
    """
    from odist.config.folder import config_folders

    typed, cut = _word(incomplete)
    found = candidates(typed, folders=config_folders())
    return [candidate.partition("=")[2] for candidate in found] if cut else found


def _word(incomplete: str) -> tuple[str, bool]:
    """The whole word under the cursor, and whether the shell has cut it at `=`."""
    if "COMP_WORDS" not in os.environ:
        return incomplete, False
    words = os.environ["COMP_WORDS"].split()
    place = int(os.environ.get("COMP_CWORD", len(words)))
    current = words[place] if place < len(words) else ""
    if current == "=" and place >= 1:
        return f"{words[place - 1]}=", True
    if place >= 2 and words[place - 1] == "=":
        return f"{words[place - 2]}={current}", True
    return current, False


def candidates(typed: str, *, folders: Sequence[Path]) -> list[str]:
    """Words that begin with `typed`: GROUP=CHOICE, KEY=VALUE, or keys; several choices after commas."""
    key, sign, value = typed.partition("=")
    if sign:
        begun, comma, last = value.rpartition(",")
        return [f"{key}={begun}{comma}{choice}" for choice in choices(key, folders=folders) if choice.startswith(last)]
    groups = [group for group in GROUPS if group.startswith(typed)]
    if len(groups) == 1 and typed:
        return [f"{groups[0]}={choice}" for choice in choices(groups[0], folders=folders)]
    keys = [name for name in known_keys() if name.startswith(typed) and name not in groups]
    nodes = list(dict.fromkeys(name.partition(".")[0] + "." for name in keys if "." in name))
    if "." not in typed and len(groups) + len(keys) > 1 and not (len(nodes) == 1 and all("." in key for key in keys)):
        return [*(f"{group}=" for group in groups), *(f"{name}=" for name in keys if "." not in name), *nodes]
    # The shell ends a single candidate by a blank, where a value has to follow at once: offer two or more.
    if len(keys) == 1:
        return [f"{keys[0]}={value}" for value in choices(keys[0], folders=folders) or ("", "VALUE")]
    return [f"{name}=" for name in keys]


def choices(key: str, *, folders: Sequence[Path]) -> list[str]:
    """What may follow `key=`, where that is a list."""
    name = key.lstrip("+~")
    if name in GROUPS:
        of_packages = {other for kind in KINDS_OF_GROUPS.get(name, ()) for other in registry.others(kind)}
        return sorted({path.stem for folder in folders for path in (folder / name).glob("*.yaml")} | of_packages)
    for found in schema_keys():
        if found.name != name:
            continue
        if found.key.parts is not None:
            return list(registry.names(found.key.parts))
        return ["true", "false"] if found.kind is bool else [str(choice) for choice in found.key.choices]
    return []
