"""Records of runs and trials as lines of a file: bytes that do not depend on the order, several writers, broken lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from odist.claims.page import build_report
from odist.claims.record import RUNS_FILE, TRIALS_FILE, Record, Trial, read_lines, update_lines
from odist.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
REPORTS = sorted(path.parent for path in (PROJECT / "reports").glob("*/recipe.yaml"))


def record(system: str, seed: int) -> Record:
    return Record(system, seed, results={"metrics": {"log_loss": 0.1 * seed, "auc": None}}, env={"b": 1, "a": 2})


def names(path: Path) -> list[str]:
    return [line.name for line in read_lines(path, Record).lines]


def test_the_bytes_do_not_depend_on_the_order_and_one_more_record_is_one_more_line(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for seed in (3, 1, 2):
        update_lines(first, Record, write=[record("a", seed)])
    update_lines(second, Record, write=[record("a", seed) for seed in (1, 2, 3)])
    assert first.read_bytes() == second.read_bytes()
    assert read_lines(first, Record).lines == [record("a", seed) for seed in (1, 2, 3)]
    update_lines(second, Record, write=[record("Z", 1)])
    before, after = (path.read_text().splitlines() for path in (first, second))
    assert [line for line in after if line not in before] == [record("Z", 1).text]
    assert after[1:] == before
    assert json.loads(after[0])["system"] == "Z"


def test_a_record_that_is_written_again_replaces_its_line_and_others_are_removed(tmp_path: Path) -> None:
    path = tmp_path / RUNS_FILE
    update_lines(path, Record, write=[record("a", 1), record("a", 2), record("b", 1)])
    better = replace(record("a", 1), results={"metrics": {"log_loss": 0.01}})
    update_lines(path, Record, write=[better], remove=lambda line: line.system == "a")
    assert read_lines(path, Record).lines == [better, record("b", 1)]


@dataclass(frozen=True)
class Extended(Record):
    """A record of a later version, with one more field."""

    NEWER = (*Record.NEWER, "extra")

    extra: dict[str, float] = field(default_factory=dict)


def test_older_lines_are_read_and_keep_their_bytes_when_a_field_is_new(tmp_path: Path) -> None:
    path = tmp_path / RUNS_FILE
    update_lines(path, Record, write=[record("a", 1)])
    older = path.read_bytes()
    [line] = read_lines(path, Extended).lines
    assert line == Extended("a", 1, results=record("a", 1).results, env=record("a", 1).env)
    update_lines(path, Extended, write=[replace(line, seed=2, extra={"x": 1.5})])
    assert path.read_bytes().startswith(older)
    assert [line.extra for line in read_lines(path, Extended).lines] == [{}, {"x": 1.5}]
    with pytest.raises(UserError, match="line 2: not a line of this version"):
        read_lines(path, Record)


@pytest.mark.parametrize("tail", [b'{"format": "odist-rec', b"\x00\x00\x00", b"\xff\xfe", b"[1, 2]", b"<<<<<<< ours"])
def test_a_broken_last_line_is_said_and_costs_no_other(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / RUNS_FILE
    update_lines(path, Record, write=[record("a", 1), record("a", 2)])
    sound = path.read_bytes()
    path.write_bytes(sound + tail)
    read = read_lines(path, Record)
    assert read.lines == [record("a", 1), record("a", 2)]
    [note] = read.notes
    assert note.startswith(f"{path}, line 3: broken")
    update_lines(path, Record, write=[record("b", 1)])
    assert path.read_bytes() == sound + record("b", 1).text.encode() + b"\n"
    assert (tmp_path / f".damaged-{RUNS_FILE}").read_bytes() == tail + b"\n"  # set aside, not deleted


def test_lines_of_another_version_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / RUNS_FILE
    update_lines(path, Record, write=[record("a", 1)])
    text = path.read_text()
    for other in (text.replace("odist-record-1", "odist-record-2"), text.replace('"seed"', '"sead"'), "{}\n"):
        path.write_text(text + other)
        with pytest.raises(UserError, match=r"line 2: not a line of this version \(odist-record-1\)"):
            update_lines(path, Record, write=[record("b", 1)])
        assert path.read_text() == text + other


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / RUNS_FILE
    code = (
        "import sys; from pathlib import Path; from odist.claims.record import Record, update_lines\n"
        "for seed in range(25): update_lines(Path(sys.argv[1]), Record, write=[Record(sys.argv[2], seed)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name], env=environment) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert len(set(names(path))) == 75
    assert names(path) == sorted(names(path))
    assert [child.name for child in tmp_path.iterdir()] == [RUNS_FILE]


def test_a_report_says_which_line_it_could_not_read_and_counts_its_run_as_missing(tmp_path: Path) -> None:
    [demo] = [folder for folder in REPORTS if folder.name == "demo"]
    (tmp_path / "recipe.yaml").write_bytes((demo / "recipe.yaml").read_bytes())
    lines = (demo / RUNS_FILE).read_bytes().splitlines(keepends=True)
    name = read_lines(demo / RUNS_FILE, Record).lines[-1].name
    (tmp_path / RUNS_FILE).write_bytes(b"".join(lines)[:-100])
    said: list[str] = []
    build_report(tmp_path, name="demo", echo=said.append)
    assert said == read_lines(tmp_path / RUNS_FILE, Record).notes
    assert len(said) == 1
    assert f"Missing runs: {name}." in (tmp_path / "demo.md").read_text()


@pytest.mark.parametrize("folder", REPORTS, ids=lambda path: path.name)
def test_committed_records_are_canonical_and_reports_small(folder: Path) -> None:
    for file, kind in ((RUNS_FILE, Record), (TRIALS_FILE, Trial)):
        if (folder / file).is_file():
            read = read_lines(folder / file, kind)
            assert not read.broken
            assert (folder / file).read_text() == "".join(f"{line.text}\n" for line in read.lines)
    assert len([path for path in folder.rglob("*") if path.is_file()]) < 12
