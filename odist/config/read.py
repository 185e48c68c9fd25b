"""Configurations read against the schema: composed by Hydra, or finished ones without it.

Hydra composes `conf/` against what `register` gives it; workers read the finished `config.yaml` by `load`, without
Hydra. The schema itself is odist.config.schema.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odist import registry
from odist.config.folder import config_folders
from odist.config.key import MISSING, Key, key_of
from odist.config.schema import VARIANTS, Config, ModelConfig, TaskConfig, flatten, to_dict, variant, variants
from odist.config.suggest import choose, unknown_key
from odist.errors import UserError


def register() -> None:
    """Put the schema and the presets where Hydra finds them; only the command line needs it."""
    from hydra.core.config_store import ConfigStore

    from odist.config.search_path import add_other_packages

    add_other_packages()
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
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
    """Group, name, keys and package of the choices that tasks and models of other packages have without YAML files.

    A task's class may name the choices it comes with, as in `DEFAULTS = {"model": "tiny", "optim": "sgd"}`. Its presets
    are the same for every scale but `smoke`, which is short. Files of these names win.
    """
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
        config: Config = _typed(Config, content, "")
    except UserError as error:
        raise error if source is content else UserError(f"{source}: {error}") from None
    if not complete:
        return config
    missing = [key for key, value in flatten(to_dict(config)) if value == MISSING]
    if missing:
        raise UserError(f"No value for {', '.join(missing)}. Give one: {missing[0]}=VALUE")
    return config


def _read(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged (no YAML: {str(error).splitlines()[0][:80]}).") from error


def _typed(kind: Any, value: Any, key: str) -> Any:
    """`value` as an object of `kind`, a dataclass or a type hint; UserError names `key`."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value}: expected keys and values below {key}.")
        if kind in VARIANTS and value.get("name", MISSING) != MISSING:
            kind = _variant(kind, value["name"], key)
        hints = typing.get_type_hints(kind)
        prefix = f"{key}." if key else ""
        for name in value:
            if name not in hints:
                raise UserError(unknown_key(f"{prefix}{name}", known_keys(kind, prefix=prefix)))
        return kind(**{name: _typed(hints[name], item, prefix + name) for name, item in value.items()})
    if value == MISSING or kind is Any:
        return value
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _typed(inner[0], value, key)
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise UserError(f"{key}={value}: expected a list, as in {key}=[a,b].")
        return [_typed(typing.get_args(kind)[0], item, key) for item in value]
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a word
        except ValueError:
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
    raise UserError(f"{key}={value}: expected {expected}.")


def _variant(kind: type, name: Any, key: str) -> Any:
    found = variant(kind, str(name))
    if found is None:
        raise UserError(f"{key}.name={name}: {choose(str(name), variants(kind))}")
    return found


@dataclass(frozen=True)
class SchemaKey:
    """A key of the schema: its dotted name, its type, and what odist.config.schema says of it."""

    name: str
    kind: Any
    key: Key


def schema_keys(kind: Any = Config, *, prefix: str = "") -> Iterator[SchemaKey]:
    """Every key of the schema; those of every task below `task`, of every model below `model`, some twice."""
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
