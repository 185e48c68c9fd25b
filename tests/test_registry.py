"""Every registered part can be imported and has the methods of its interface; other packages can add parts."""

from __future__ import annotations

import inspect

import pytest

from odist import registry
from odist.errors import UserError
from odist.exchange.base import Exchange
from odist.exchange.predictions import PredictionExchange
from odist.strategies.base import Strategy
from odist.tasks.base import Task
from odist.teachers.base import Teacher

PROTOCOLS = {"tasks": Task, "strategies": Strategy, "teachers": Teacher, "exchange": Exchange}


def methods(protocol):
    return {name for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry.names(kind)])
def test_contract(kind, name):
    part = registry.find(kind, name)
    assert inspect.isclass(part)
    assert part.__doc__
    if kind in PROTOCOLS:
        wanted = methods(PROTOCOLS[kind])
        if issubclass(part, PredictionExchange):  # what it carries are no weights
            wanted = {"of", "log"}
        for method in wanted:
            expected = list(inspect.signature(getattr(PROTOCOLS[kind], method)).parameters)
            assert list(inspect.signature(getattr(part, method)).parameters) == expected, method


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="criteo"):
        registry.find("tasks", "nothing")


def test_another_package_adds_a_part(tmp_path, monkeypatch):
    (tmp_path / "their_tasks.py").write_text("class TheirTask:\n    '''Theirs.'''\n")
    info = tmp_path / "their_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[odist.tasks]\ntheirs = their_tasks:TheirTask\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.find("tasks", "theirs").__name__ == "TheirTask"
    assert "criteo" in registry.names("tasks")
