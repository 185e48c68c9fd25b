"""The words after `odist train`, sorted into flags and overrides, and clear errors for what Hydra would misread."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odist.config.key import MISSING
from odist.config.read import known_keys, schema_keys
from odist.config.suggest import key_meant, nearest
from odist.errors import UserError

# Flag and the values that it takes: None for no value, () for any.
FLAGS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m")),
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}
INFO = ("--info", "-i")  # with a value or none
INFO_VALUES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
GROUPS = ("task", "algorithm", "data", "scale", "model", "optim", "exchange", "launch")  # those a user chooses from
ELSEWHERE = {
    "--version": "Type odist --version.",
    "--shell-completion": "Type odist --install-completion.",
    "--experimental-rerun": "The same `odist train` command continues a run.",
}


@dataclass
class Arguments:
    """What was typed: flags with their values, then overrides, as Hydra's parser wants them."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)

    @property
    def wants_help(self) -> bool:
        return "--help" in self.flags or "-h" in self.flags

    @property
    def is_multirun(self) -> bool:
        return any(flag in ("-m", "--multirun") for flag in self.flags) or any(
            word.startswith("hydra.mode=") and word.upper().endswith("MULTIRUN") for word in self.overrides
        )

    def value_of(self, key: str) -> str | None:
        """What was typed behind `key=`, without quotes; None if nothing was, or `null`."""
        given = [word.partition("=")[2] for word in self.overrides if word.lstrip("+").startswith(f"{key}=")]
        return re.sub(r"^(['\"])(.*)\1$", r"\2", given[-1]) if given and given[-1] not in ("", "null") else None

    def words(self) -> list[str]:
        """The command line for Hydra."""
        return [*self.flags, *(["--"] if self.flags and self.overrides else []), *self.overrides]


def read_arguments(words: list[str]) -> Arguments:
    """Sort `words` into flags and overrides, which may stand in any order.

    Raises UserError for an unknown flag, a wrong value of a flag, a key given twice, and run.dir=a,b with -m.
    """
    found = Arguments()
    rest: Iterator[str] = iter(words)
    while (word := next(rest, None)) is not None:
        name, sign, value = word.partition("=")
        if word == "--":
            continue
        if not word.startswith("-"):
            found.overrides.append(_as_hydra_reads_it(word))
        elif name in INFO:
            following = None if sign else next(rest, None)
            if following in INFO_VALUES:
                value = following
            elif following is not None:
                rest = itertools.chain([following], rest)
            _check_value(name, value or "all", INFO_VALUES)
            found.flags += [name, value] if value else [name]
        elif name not in FLAGS:
            raise UserError(_unknown_flag(name, value if sign else next(rest, None)))
        elif (takes := FLAGS[name]) is None:
            if sign:
                raise UserError(f"{word}: {name} takes no value.")
            found.flags.append(name)
        else:
            given = value if sign else next(rest, None)
            _check_value(name, given, takes)
            found.flags += [name, str(given)]
    _refuse_repeated(found.overrides)
    if found.is_multirun and (folder := found.value_of("run.dir")) and is_sweep(f"run.dir={folder}"):
        raise UserError(
            f"run.dir={folder}: in a multirun run.dir is the parent folder of all runs; give one. "
            "Every run gets its own folder below it."
        )
    return found


def _as_hydra_reads_it(word: str) -> str:
    """`word` with the home folder for `~/`, which no shell expands behind `key=` and Hydra cannot read.

    In `groups=[{model.dropout=0.1},{}]` Hydra wants colons.
    """
    if word.lstrip("+").startswith("groups="):
        return re.sub(r"(?<=[{,])\s*([\w.]+)=", r"\1:", word)
    home = str(Path.home())
    places = {found.name for found in schema_keys() if found.key.place}
    if word.partition("=")[0].lstrip("+") not in places or not re.fullmatch(r"[\w./-]+", home):
        return word
    return re.sub(r"(?<=[=,\[])~(?=/|$)", home, word)


def _check_value(flag: str, value: str | None, takes: tuple[str, ...]) -> None:
    if value is None or value.startswith("-") or (takes and value not in takes):
        expected = f"one of {', '.join(takes)}" if takes else "a value behind it"
        raise UserError(f"{flag}{f' {value}' if value else ''}: expected {expected}. Flags: odist train --help")


def _unknown_flag(name: str, value: str | None) -> str:
    """The message for an unknown option, which usually is a key with dashes before it."""
    if name in ELSEWHERE:
        return f"{name}: odist train has no such option. {ELSEWHERE[name]}"
    key = name.lstrip("-").replace("-", "_")
    shown = "VALUE" if value is None or value.startswith("-") or "=" in value else value
    names = list(dict.fromkeys([*known_keys(), *GROUPS]))
    meant = key if key in names else key_meant(key, names) or nearest(key, names)
    if meant is None:
        return f"There is no option {name}. Options and keys: odist train --help"
    return f"{name}: odist train takes KEY=VALUE, without dashes. Type {meant}={shown}"


def _refuse_repeated(overrides: list[str]) -> None:
    seen: dict[str, str] = {}
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key in seen:
            raise UserError(
                f"{seen[key]} {word}: {key} is given twice. Type it once; with -m, {key}=A,B trains with "
                "each of its values."
            )
        seen[key] = word


def is_sweep(override: str) -> bool:
    """Whether a word asks for several values, as `seed=1,2` does."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False  # Hydra will say what is wrong with it


def typed(value: Any) -> str:
    """A value of the configuration as it is typed on the command line; nothing where there is none yet."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{typed(item)}' for name, item in value.items())}}}"
    return "" if value == MISSING else str(value)
