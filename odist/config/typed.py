"""YAML and JSON read into dataclasses: configurations, recipes, records. Every mistake is named with its place.

A place is a dotted key, as in `train.batch`, with the name of the item in a list of named ones:
`claims.loss.statement`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from odist.config.key import MISSING
from odist.config.suggest import choose
from odist.errors import UserError

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
LONGEST = 60  # characters of a value that a message repeats


def yaml_content(text: str) -> Any:
    """The content of a YAML text; ValueError with one line on what is wrong with it, be it a key that stands there twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                    raise ValueError(
                        f"the key {key.value!r} stands there twice, from line {key.start_mark.line + 1} on"
                    )
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0][:80]}") from error


class Reader:
    """Reads values as objects of dataclasses or of type hints.

    Beside their types, fields of a dataclass may say in their metadata: `yaml`, the key that they have in the file;
    `within`, the mapping below the object's own that they stand in. An object in a mapping of names has its name as
    `name`. What `__post_init__` of a dataclass refuses gets its place.

    skips_empty: whether a key with nothing behind it counts as absent
    """

    def __init__(self, *, skips_empty: bool = False) -> None:
        self.skips_empty = skips_empty

    def kind_of(self, kind: Any, content: Mapping[Any, Any], key: str) -> Any:
        """The dataclass to read `content` as, where `kind` has variants."""
        return kind

    def unknown(self, name: str, *, kind: Any, key: str, names: Sequence[str]) -> str:
        """The message for `name` below the place `key`, which is none of `names`."""
        return f"{_place(key)}unknown key {name!r}. {choose(name, names)}"

    def read(self, kind: Any, value: Any, key: str = "", *, given: Mapping[str, Any] | None = None) -> Any:
        """`value` as an object of `kind`.

        key: its place; given: fields that do not stand in `value`
        Raises UserError naming the place of what is unknown, missing or of another type.
        """
        if dataclasses.is_dataclass(kind):
            return self._object(kind, value, key, given or {})
        if value == MISSING or kind is Any:
            return value
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            inner = [option for option in arguments if option is not type(None)]
            return None if value is None else self.read(inner[0], value, key)
        if origin in (list, tuple):
            return origin(self._items(arguments, value, key))
        if origin is dict:
            if not isinstance(value, Mapping):
                raise UserError(f"{key}={_short(value)}: expected keys and values below {key}.")
            return {name: self._named(arguments[1], name, item, key) for name, item in value.items()}
        return _scalar(kind, value, key)

    def _items(self, arguments: tuple[Any, ...], value: Any, key: str) -> list[Any]:
        if not isinstance(value, list):
            raise UserError(f"{key}={_short(value)}: expected a list, as in {key}=[a,b].")
        kinds = arguments if len(arguments) > 1 and arguments[-1] is not Ellipsis else (arguments[0],) * len(value)
        if len(kinds) != len(value):
            raise UserError(f"{key}={_short(value)}: expected a list of {len(kinds)}.")
        places = [f"{key}.{item['id']}" if isinstance(item, Mapping) and "id" in item else key for item in value]
        return [self.read(kind, item, place) for kind, item, place in zip(kinds, value, places, strict=True)]

    def _named(self, kind: Any, name: Any, item: Any, key: str) -> Any:
        if not isinstance(name, str):
            raise UserError(f"{key}: expected names, got {name!r}.")
        if not dataclasses.is_dataclass(kind):
            return self.read(kind, item, _below(key, name))
        named = any(field.name == "name" for field in dataclasses.fields(kind))
        item = {} if item is None and self.skips_empty else item
        return self.read(kind, item, _below(key, name), given={"name": name} if named else None)

    def _object(self, kind: Any, value: Any, key: str, given: Mapping[str, Any]) -> Any:
        if not isinstance(value, Mapping):
            below = f" below {key}" if key else ""
            raise UserError(f"{key}={_short(value)}: expected keys and values{below}.".removeprefix("="))
        kind = self.kind_of(kind, value, key)
        hints = typing.get_type_hints(kind)
        groups: dict[str, dict[str, dataclasses.Field[Any]]] = {"": {}}
        for field in dataclasses.fields(kind):
            if field.init and field.name not in given:
                siblings = groups.setdefault(field.metadata.get("within", ""), {})
                siblings[field.metadata.get("yaml", field.name)] = field
        arguments = dict(given)
        for group, fields in groups.items():
            content, prefix = (value.get(group, {}), _below(key, group)) if group else (value, key)
            if not isinstance(content, Mapping):
                raise UserError(f"{prefix}={_short(content)}: expected keys and values below {prefix}.")
            if self.skips_empty:
                content = {name: item for name, item in content.items() if item is not None}
            self._check_keys(content, fields, kind=kind, key=prefix, groups=[] if group else [*groups][1:])
            for name, field in fields.items():
                if name in content:
                    arguments[field.name] = self.read(hints[field.name], content[name], _below(prefix, name))
        try:
            return kind(**arguments)
        except UserError as error:
            raise UserError(f"{_place(key)}{error}") from None

    def _check_keys(
        self,
        content: Mapping[Any, Any],
        fields: Mapping[str, dataclasses.Field[Any]],
        *,
        kind: Any,
        key: str,
        groups: Sequence[str],
    ) -> None:
        names = [*fields, *groups]
        for name in content:
            if name not in names:
                raise UserError(self.unknown(str(name), kind=kind, key=key, names=names))
        without_default = (dataclasses.MISSING, dataclasses.MISSING)
        missing = [
            name
            for name, field in fields.items()
            if name not in content and (field.default, field.default_factory) == without_default
        ]
        if missing:
            raise UserError(f"{_place(key)}lacks {', '.join(missing)}.")


def _scalar(kind: Any, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a word
        except ValueError:
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UserError(f"{key}={_short(value)}: expected {EXPECTED[kind]}.")


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _place(key: str) -> str:
    return f"{key}: " if key else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
