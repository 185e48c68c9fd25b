"""`odist train --help`: the choices, then every key of this command with its value and meaning.

Hydra lists the choices and composes the values (hydra.help.template of conf/config.yaml); what a key means is said in
odist.config.schema, what a choice is in the first line of its file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from odist import registry
from odist.cli.train_arguments import GROUPS, typed
from odist.config.key import Key, key_of
from odist.config.read import described, load
from odist.config.schema import Config

USAGE = """\
odist train GROUP=CHOICE KEY=VALUE ...

Train one model. The same command again continues it where it was interrupted.
With -m every combination of several values:
  odist train -m algorithm=sync,codistill seed=0,1,2"""

FLAGS = """\
Flags
  -m, --multirun        train with every combination of values a,b,c
  --cfg job --resolve   print the finished configuration and do nothing
  --config-dir DIR      more choices: DIR/algorithm/mine.yaml is algorithm=mine
  --help                this page; task=lm --help shows the keys of task=lm
  --hydra-help          launchers, sweepers and flags of Hydra"""


def help_page(hydra_help: str, *, folders: Sequence[Path], width: int) -> str:
    """The page.

    hydra_help: what Hydra printed by the template of conf/config.yaml
    folders: where the files of choices may lie
    width: columns of the terminal
    """
    import yaml

    listed, _, content = hydra_help.partition("---\n")
    config = load(yaml.safe_load(content), complete=False)
    chosen = _chosen(config)
    lines = [USAGE, "", "Choices, as in task=lm (* is the one of this command)"]
    options = dict(line.split(": ", 1) for line in listed.splitlines() if ": " in line)
    for group in GROUPS:
        names = [name for name in options.get(group, "").split(", ") if name and not name.endswith("_schema")]
        lines += ["", *_choices(group, names, chosen=chosen[group], folders=folders, width=width)]
    about_keys = (
        f"Keys of task={chosen['task']} model={chosen['model']}, as in seed=1, with the values of this command. "
        "For another task or model type it before --help: odist train task=lm --help"
    )
    lines += ["", *textwrap.wrap(about_keys, width)]
    lines += _keys(config, width=width)
    return "\n".join([*lines, "", FLAGS])


def _chosen(config: Config) -> dict[str, str]:
    nodes = {group: getattr(config, group) for group in GROUPS}
    return {group: node if isinstance(node, str) else node.name for group, node in nodes.items()}


def _choices(group: str, names: Sequence[str], *, chosen: str, folders: Sequence[Path], width: int) -> Iterator[str]:
    meaning = next(key_of(field).meaning for field in fields(Config) if field.name == group)
    yield f"  {group}: {meaning}"
    for name in names:
        yield from _entry(
            f"  {'*' if name == chosen else ' '} {name}", _title(group, name, folders), at=24, width=width
        )


def _title(group: str, name: str, folders: Sequence[Path]) -> str:
    """The first sentence of the comment at the top of a file, without its sources; empty if there is no file."""
    for folder in folders:
        path = folder / group / f"{name}.yaml"
        if path.is_file():
            comment = []
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.startswith("# ") and not line.startswith("# @package"):
                    comment.append(line.removeprefix("# "))
                elif comment:
                    break
            text = " ".join(comment)
            for end in (". ", "; ", ": ", " ("):
                text = text.partition(end)[0]
            return text.rstrip(".")
    return ""


def _keys(config: Config, *, width: int) -> Iterator[str]:
    examples = _examples_per_step(config)
    at = min(40, max(30, width * 9 // 20))
    node = ""
    for name, value, key in described(config):
        if name in GROUPS or name.removesuffix(".name") in GROUPS:
            continue  # chosen above
        if name.rpartition(".")[0] != node or not node:
            if name.rpartition(".")[0] != node or name == "seed":
                yield ""
            node = name.rpartition(".")[0]
        yield from _entry(f"  {name}={typed(value)}", _meaning(value, key, examples=examples), at=at, width=width)


def _examples_per_step(config: Config) -> int | None:
    return config.train.batch * config.workers if isinstance(config.train.batch, int) else None


def _meaning(value: Any, key: Key, *, examples: int | None) -> str:
    text = key.meaning
    if key.as_steps and examples and isinstance(value, int) and value > 0:
        text += f" (here {max(1, round(value / examples)):,} steps)"
    if key.parts is not None:
        meanings = {name: part.meaning for name, part in registry.own(key.parts).items()}
        text += ": " + _listed(meanings | dict.fromkeys(registry.others(key.parts), ""))
    elif isinstance(key.choices, dict):
        text += ": " + _listed(key.choices)
    elif key.choices:
        text += ": " + " | ".join(map(str, key.choices))
    return text


def _listed(meanings: Mapping[str, str]) -> str:
    return " | ".join(f"{name} ({said})" if said else name for name, said in meanings.items())


def _entry(term: str, meaning: str, *, at: int, width: int) -> Iterator[str]:
    """`term`, and its meaning from column `at`; below it where the term is too long."""
    lines = textwrap.wrap(meaning, max(20, width - at)) or [""]
    if len(term) > at - 2:
        yield term
        term = ""
    yield f"{term:{at}}{lines[0]}".rstrip()
    for line in lines[1:]:
        yield " " * at + line
