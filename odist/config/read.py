"""Configurations read against the schema: composed by Hydra, or finished ones without it.

Hydra composes `conf/` against what `register` gives it; workers read the finished `config.yaml` by `load`, without
Hydra. The schema itself is odist.config.schema.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odist import registry
from odist.config.folder import config_folders
from odist.config.identity import flatten, to_dict
from odist.config.key import MISSING, Key, key_of
from odist.config.options import added_options, extended, open_options, other_options, without_unread
from odist.config.schema import Config, ModelConfig, TaskConfig
from odist.config.suggest import choose, unknown_key
from odist.config.typed import Reader, yaml_content
from odist.config.variants import VARIANTS, variant, variants
from odist.errors import UserError


def register() -> None:
    """Put the schema and the presets where Hydra finds them; only the command line needs it."""
    from hydra.core.config_store import ConfigStore

    from odist.config.search_path import add_other_packages

    add_other_packages()
    store = ConfigStore.instance()
    store.store(name="schema", node=extended(Config, open_options()))
    for group, node in (("task", TaskConfig), ("model", ModelConfig)):
        for name, schema in variants(node).items():
            store.store(group=group, name=f"{name}_schema", node=schema)
    for group, name, values, package in _other_choices():
        store.store(group=group, name=name, node=values, package=package)
    for folder in config_folders():
        for group, name, values in presets(folder / "presets"):
            package = {"preset": "_global_", "size": "model", "rate": "optim"}[group]
            store.store(group=group, name=name, node=values, package=package)


def _other_choices() -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """Group, name, keys and package of the choices that parts of other packages have without YAML files.

    A task's class may name the choices it comes with, as in `DEFAULTS = {"model": "tiny", "optim": "sgd"}`. Its presets
    are the same for every scale but `smoke`, which is short. A strategy and a teacher are an algorithm of their name. Files
    of these names win.
    """
    for name in registry.others("exchange"):
        yield "exchange", name, {"name": name}, "exchange"
    for kind, key in (("teachers", "teacher"), ("strategies", "strategy")):
        for name in registry.others(kind):
            yield "algorithm", name, {"algorithm": {"name": name, key: name}}, "_global_"
    for name in registry.others("models"):
        yield "model", name, {"defaults": [f"{name}_schema"], "name": name}, "model"
    for name in registry.others("tasks"):
        comes_with = getattr(registry.find("tasks", name), "DEFAULTS", {})
        overrides = [{f"override /{group}": choice} for group, choice in comes_with.items()]
        yield "task", name, {"defaults": [f"{name}_schema@task", *overrides], "task": {"name": name}}, "_global_"
        for data in ("prepared", "synthetic"):
            for scale in ("smoke", "small", "medium", "paper"):
                length = {"max_examples": 40 * 32} if scale == "smoke" else {}
                preset = {"train": {"batch": 32, **length}, "exchange": {"interval": 4 * 32}}
                yield "preset", f"{name}-{data}-{scale}", preset, "_global_"


def presets(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Group (`preset`, `size`, `rate`), name and keys of every row in the tables of `folder`, one file a task.

    A row gives the preset `<task>-<data>-<scale>`, the size `<model>-<data>-<scale>` and the rate
    `<optim>-<task>-<data>-<scale>`; what stands under `both` holds for both kinds of data.
    """
    import yaml

    kinds = ("prepared", "synthetic")
    for path in sorted(folder.glob("*.yaml")):
        for scale, row in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for data in kinds:
                yield "preset", f"{path.stem}-{data}-{scale}", _merged(row.get("both"), row.get(data))
                for group, key, of_task in (("size", "model", ""), ("rate", "optim", f"-{path.stem}")):
                    for name, node in row.get(key, {}).items():
                        base, _, only = name.rpartition("-")
                        if only not in kinds:
                            base, only = name, data
                        if only == data:
                            yield group, f"{base}{of_task}-{data}-{scale}", node


def _merged(first: Any, second: Any) -> dict[str, Any]:
    """Nested mappings as one; a key that both have is the second's."""
    result = dict(first or {})
    for key, value in (second or {}).items():
        result[key] = _merged(result.get(key), value) if isinstance(value, Mapping) else value
    return result


def load(source: Path | str | Mapping[str, Any], *, complete: bool = True) -> Config:
    """Read a finished configuration, from a mapping or a YAML file, without Hydra or OmegaConf.

    Keys that are absent keep their defaults. Raises UserError for unknown keys, wrong types and, if it has to be
    complete, keys that have no value.
    """
    if isinstance(source, Mapping):
        content: Any = source
    else:
        content = _read(Path(source))
    if not isinstance(content, Mapping):
        raise UserError(f"{source}: not a configuration: expected keys and values, as in a run's config.yaml.")
    try:
        content = without_unread(content)
        config: Config = _ConfigReader().read(extended(Config, added_options(content)), content)
    except UserError as error:
        raise error if isinstance(source, Mapping) else UserError(f"{source}: {error}") from None
    if not complete:
        return config
    missing = [key for key, value in flatten(to_dict(config)) if value == MISSING]
    if missing:
        raise UserError(f"No value for {', '.join(missing)}. Give one: {missing[0]}=VALUE")
    return config


def _read(path: Path) -> Any:
    try:
        return yaml_content(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}).") from error


class _ConfigReader(Reader):
    """Reads configurations: the task's and the model's keys depend on their names, and keys are those of `odist train`."""

    def kind_of(self, kind: Any, content: Mapping[Any, Any], key: str) -> Any:
        if kind not in VARIANTS or content.get("name", MISSING) == MISSING:
            return kind
        name = str(content["name"])
        found = variant(kind, name)
        if found is None:
            raise UserError(f"{key}.name={name}: {choose(name, variants(kind))}")
        return found

    def unknown(self, name: str, *, kind: Any, key: str, names: Sequence[str]) -> str:
        prefix = f"{key}." if key else ""
        return unknown_key(f"{prefix}{name}", known_keys(kind, prefix=prefix))


@dataclass(frozen=True)
class SchemaKey:
    """A key of the schema: its dotted name, its type, and what odist.config.schema says of it."""

    name: str
    kind: Any
    key: Key


def schema_keys(kind: Any = Config, *, prefix: str = "") -> Iterator[SchemaKey]:
    """Every key of the schema; those of every task below `task`, of every model below `model`, some twice.

    With them are the options of parts of other packages, chosen or not.
    """
    if kind is Config:
        for option in other_options():
            yield SchemaKey(option.dotted, option.hint, key_of(option.field))
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if hint in VARIANTS:
            for schema in variants(hint).values():
                yield from schema_keys(schema, prefix=f"{prefix}{field.name}.")
        elif dataclasses.is_dataclass(hint):
            yield from schema_keys(hint, prefix=f"{prefix}{field.name}.")
        else:
            yield SchemaKey(prefix + field.name, hint, key_of(field))


def known_keys(kind: Any = Config, *, prefix: str = "") -> list[str]:
    """Dotted names of every key of the schema, each once."""
    return list(dict.fromkeys(found.name for found in schema_keys(kind, prefix=prefix)))


def described(config: Any, *, prefix: str = "") -> Iterator[tuple[str, Any, Key]]:
    """Dotted name, value and description of every key of a typed configuration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from described(value, prefix=f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, key_of(field)
