"""Files that appear whole, and JSON-lines files that are read while they grow."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from odist.files import Tail, read_json_lines, replacing, save_array


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def test_a_tail_reads_every_line_once_and_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    tail = Tail(path)
    assert tail.objects() == []  # not there yet
    append(path, '{"step": 1}\n{"step": 2}\n{"st')
    assert tail.objects() == [{"step": 1}, {"step": 2}]
    assert tail.objects() == []
    append(path, 'ep": 3}\n')
    assert tail.objects() == [{"step": 3}]
    assert tail.place == path.stat().st_size
    assert Tail(path, place=12).objects() == [{"step": 2}, {"step": 3}]


def test_a_tail_from_the_end_reads_what_is_added(tmp_path: Path) -> None:
    path = tmp_path / "log"
    early = Tail.from_end(path)
    append(path, "first\n")
    late = Tail.from_end(path)
    append(path, "second\n")
    assert (early.lines(), late.lines()) == ([b"first", b"second"], [b"second"])


def test_lines_that_hold_no_object_are_counted_and_harm_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = [b'{"step": ', b"[1]", b"\xff\x00", b"[" * 100_000, b"null"]
    lines = [b'{"step": 1}', *bad, b"", b'{"step": 2}']
    path.write_bytes(b"\n".join(lines))
    assert read_json_lines(path) == ([{"step": 1}, {"step": 2}], len(bad))
    path.write_bytes(b"")
    assert read_json_lines(path) == ([], 0)
    with pytest.raises(FileNotFoundError):
        read_json_lines(tmp_path / "none")


def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    save_array(path, np.arange(3))
    with pytest.raises(ValueError, match="Object arrays"):
        save_array(path, np.array([{}]))
    with contextlib.suppress(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]
    with replacing(tmp_path / "new.json") as temporary:
        temporary.write_text(json.dumps({}))
        assert not (tmp_path / "new.json").exists()
    assert (tmp_path / "new.json").read_text() == "{}"
