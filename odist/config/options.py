"""Options of strategies, teachers and exchanges: which node they stand below, and those of the parts that a run uses.

A part declares its options once, as a dataclass: odist's own beside their names in the room's table, those of another
package as the attribute `Options` of the class. The options of odist's own parts are always in the configuration, those of
another package's part only where it is chosen.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from odist import registry
from odist.config.key import MISSING, Key, key_of
from odist.config.suggest import choose
from odist.errors import UserError

if TYPE_CHECKING:
    from odist.config.schema import Config

# Kind of part: the key that names the chosen one. Its options stand below the same node unless they say otherwise.
CHOSEN_BY = {"strategies": "algorithm.strategy", "teachers": "algorithm.teacher", "exchange": "exchange.name"}
Node = TypeVar("Node")


@dataclass(frozen=True)
class Option:
    """One option of a part. node, name: where it stands in the configuration; hint: its type; owner: kind and name."""

    node: str
    name: str
    hint: Any
    field: dataclasses.Field[Any]
    owner: tuple[str, str]

    @property
    def dotted(self) -> str:
        return f"{self.node}.{self.name}"

    @property
    def default(self) -> Any:
        made = self.field.default_factory
        return self.field.default if made is dataclasses.MISSING else made()


def options_type(kind: str, name: str) -> type | None:
    """The dataclass of a part's options, None if it takes none.

    UserError if there is no such part, or another package gives something else.
    """
    own = registry.own(kind)
    if name in own:
        return own[name].options
    known = registry.names(kind)
    if name not in known:
        raise UserError(f"{CHOSEN_BY[kind]}={name}: {choose(name, known)}")
    found = getattr(registry.find(kind, name), "Options", None)
    if found is not None and not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{kind}: Options of {name!r} is not a dataclass.")
    return found


def options_of_part(kind: str, name: str) -> Iterator[Option]:
    """The options of one part, in the order in which they are declared."""
    found = options_type(kind, name)
    if found is not None:
        hints = typing.get_type_hints(found)
        for field in dataclasses.fields(found):
            node = key_of(field).node or CHOSEN_BY[kind].partition(".")[0]
            yield Option(node, field.name, hints[field.name], field, (kind, name))


def own_options() -> Iterator[Option]:
    """The options of every part that comes with odist; one that several parts take comes once for each."""
    for kind in ("teachers", "strategies", "exchange"):
        for name in registry.own(kind):
            yield from options_of_part(kind, name)


def other_options() -> Iterator[Option]:
    """The options that parts of other packages add to the keys that every configuration has."""
    from odist.config.schema import Config

    hints = typing.get_type_hints(Config)
    for kind in CHOSEN_BY:
        for name in registry.others(kind):
            for option in options_of_part(kind, name):
                if all(option.name != field.name for field in dataclasses.fields(hints[option.node])):
                    yield option


def with_own_options(node: str) -> Callable[[type[Node]], type[Node]]:
    """Class decorator: add the options of odist's own parts that stand below `node`."""
    return lambda base: with_options(base, [option for option in own_options() if option.node == node])


def with_options(base: type[Node], options: list[Option]) -> type[Node]:
    """A dataclass below `base` with these options as fields.

    One that `base` has already is not added again; UserError if it was declared by somebody else.
    """
    known: dict[str, Key] = {field.name: key_of(field) for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    added: list[tuple[str, Any, Any]] = []
    for option in options:
        described = key_of(option.field)
        if option.name not in known:
            added.append((option.name, option.hint, copy.copy(option.field)))
        elif known[option.name] is not described:
            kind, name = option.owner
            raise UserError(
                f"{kind}: the option {option.name} of {name!r} has the name of another key below {option.node}. Its package "
                "has to give it a name of its own."
            )
        known[option.name] = described
    made: Any = dataclasses.make_dataclass(base.__name__, added, bases=(base,))
    made.__module__, made.__qualname__, made.__doc__ = base.__module__, base.__qualname__, base.__doc__
    return typing.cast(type[Node], made)


def extended(base: type[Node], options: list[Option]) -> type[Node]:
    """The schema of a whole configuration: `base` with these options in their nodes."""
    if not options:
        return base
    hints = typing.get_type_hints(base)
    nodes = {node: with_options(hints[node], list(own)) for node, own in _by_node(options)}
    fields = [(node, made, dataclasses.field(default_factory=made)) for node, made in nodes.items()]
    return typing.cast(type[Node], dataclasses.make_dataclass(base.__name__, fields, bases=(base,)))


def _by_node(options: list[Option]) -> Iterator[tuple[str, Iterator[Option]]]:
    return itertools.groupby(sorted(options, key=lambda option: option.node), key=lambda option: option.node)


def open_options() -> list[Option]:
    """The options of other packages' parts as Hydra composes them, before anybody knows which parts are chosen.

    They are of any type and have no value until one is given; `without_unread` and the chosen part's own declaration say
    the rest.
    """
    field: Any = dataclasses.field(default=MISSING)
    found = {option.dotted: dataclasses.replace(option, hint=Any, field=field) for option in other_options()}
    return list(found.values())


def added_options(content: Mapping[str, Any]) -> list[Option]:
    """The options that a nested configuration has because of the parts of other packages that it chooses."""
    chosen = {kind: chosen_part(content, kind) for kind in CHOSEN_BY}
    return [
        option
        for kind, name in chosen.items()
        if name is not None and name not in registry.own(kind)
        for option in options_of_part(kind, name)
    ]


def without_unread(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` without options of other packages' parts that have no value.

    UserError for one that was given a value and whose part is not chosen.
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    read = {option.dotted for option in added_options(content)}
    for option in other_options():
        below = found.get(option.node)
        if not isinstance(below, dict) or option.name not in below:
            continue
        if below[option.name] == MISSING:
            del below[option.name]
        elif option.dotted not in read:
            kind, name = option.owner
            raise UserError(
                f"{option.dotted}={below[option.name]}: only {CHOSEN_BY[kind]}={name} reads it, which this run does not have."
            )
    return found


def chosen_part(content: Mapping[str, Any], kind: str) -> str | None:
    """Name of the part of this kind that a nested configuration chooses; None if it says nothing."""
    node, _, key = CHOSEN_BY[kind].partition(".")
    below = content.get(node)
    name = below.get(key, MISSING) if isinstance(below, Mapping) else MISSING
    return None if name == MISSING else str(name)


def options_of(config: Config, kind: str) -> Any:
    """The options of the part of this kind that `config` chooses, as an object of its dataclass; None if it takes none."""
    name = _name_of(config, kind)
    found = options_type(kind, name)
    if found is None:
        return None
    return found(
        **{option.name: getattr(getattr(config, option.node), option.name) for option in options_of_part(kind, name)}
    )


def chosen_parts(config: Config) -> dict[str, str]:
    """Name of the chosen part by kind."""
    return {kind: _name_of(config, kind) for kind in CHOSEN_BY}


def _name_of(config: Config, kind: str) -> str:
    node, _, key = CHOSEN_BY[kind].partition(".")
    return str(getattr(getattr(config, node), key))


def unread_options(chosen: Mapping[str, str]) -> list[Option]:
    """The options of odist's own parts that none of the chosen parts takes.

    chosen: name by kind. If it comes from another package, all options of its kind count as read: it may look at them.
    """
    own = {kind: name for kind, name in chosen.items() if name in registry.own(kind)}
    read = {option.dotted for kind, name in own.items() for option in options_of_part(kind, name)}
    return [option for option in own_options() if option.owner[0] in own and option.dotted not in read]
