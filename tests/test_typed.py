"""Reading mappings into dataclasses: types, names of the file, and messages that name the place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from odist.config.typed import Reader, yaml_content
from odist.errors import UserError


@dataclass(frozen=True)
class Item:
    name: str
    size: int
    tags: tuple[str, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Rule:
    id: str
    limit: float = field(metadata={"within": "bounds"})
    lowest: float = field(default=0.0, metadata={"within": "bounds", "yaml": "at least"})

    def __post_init__(self) -> None:
        if self.limit < self.lowest:
            raise UserError(f"the limit {self.limit:g} lies below {self.lowest:g}.")


@dataclass(frozen=True)
class Whole:
    title: str
    text: str
    items: dict[str, Item] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    pair: tuple[int, int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    loud: bool = False


TEXT = """
title: T
items: {a: {size: 1, tags: [x, y]}, b: {size: 2, note: n}}
rules: [{id: r, bounds: {limit: 1e-3, at least: 0}}]
pair: [1, 2]
extra: {any: [thing, 1.5]}
"""


def read(text: str, **options: bool) -> Whole:
    whole: Whole = Reader(**options).read(Whole, yaml_content(text), given={"text": text})
    return whole


def test_names_come_from_the_mapping_and_fields_may_stand_elsewhere_in_the_file() -> None:
    whole = read(TEXT)
    assert whole.items == {"a": Item("a", 1, ("x", "y")), "b": Item("b", 2, note="n")}
    assert whole.rules == (Rule("r", 0.001),)
    assert (whole.pair, whole.extra, whole.loud, whole.text) == ((1, 2), {"any": ["thing", 1.5]}, False, TEXT)


def test_a_key_with_nothing_behind_it_may_count_as_absent() -> None:
    assert read("title: T\nitems:\nrules:\n", skips_empty=True) == Whole("T", "title: T\nitems:\nrules:\n")
    with pytest.raises(UserError, match="rules=None: expected a list"):
        read("title: T\nrules:\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: T", "titel: T", "unknown key 'titel'. Did you mean title?"),
        ("title: T", "", "lacks title"),
        ("title: T", "text: mine\ntitle: T", "unknown key 'text'"),  # it is given
        ("title: T", "title: 3", "title=3: expected a word"),
        ("size: 1", "size: 1.5", "items.a.size=1.5: expected a whole number"),
        ("size: 1", "size: true", "items.a.size=True: expected a whole number"),
        ("size: 1", "seize: 1", "items.a: unknown key 'seize'. Did you mean size?"),
        ("size: 1, ", "", "items.a: lacks size"),
        ("{size: 1, tags: [x, y]}", "[1]", "items.a=[1]: expected keys and values below items.a"),
        ("[x, y]", "x", "items.a.tags=x: expected a list, as in items.a.tags=[a,b]"),
        ("{a: ", "{1: ", "items: expected names, got 1"),
        ("[1, 2]", "[1, 2, 3]", "pair=[1, 2, 3]: expected a list of 2"),
        ("limit: 1e-3", "limit: low", "rules.r.bounds.limit=low: expected a number"),
        ("limit: 1e-3, ", "", "rules.r.bounds: lacks limit"),
        ("bounds: {limit: 1e-3, at least: 0}", "bounds: 3", "rules.r.bounds=3: expected keys and values"),
        ("bounds: {limit: 1e-3, at least: 0}", "limit: 3", "rules.r: unknown key 'limit'"),
        ("limit: 1e-3", "limit: -1", "rules.r: the limit -1 lies below 0"),
        ("pair:", "loud: maybe\npair:", "loud=maybe: expected true or false"),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as error:
        read(TEXT.replace(old, new, 1))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\t- x", "a: &x [*y]"])
def test_what_is_no_yaml_is_said_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not YAML: [^\n]+$"):
        yaml_content(text)


def test_a_key_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="the key 'b' stands there twice, from line 3 on"):
        yaml_content("a:\n  c: 0\n  b: 1\n  d: 2\n  b: 3\n")
    assert yaml_content("a: {b: 1}\nc: {b: 2}\n") == {"a": {"b": 1}, "c": {"b": 2}}
