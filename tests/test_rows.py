"""Row stores: what is written is read back, and damage is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from odist.data.arrays import load_array
from odist.data.rows import FORMAT, RowStore, RowWriter
from odist.errors import UserError

COLUMNS = 5


def write_store(folder: Path, rows: np.ndarray, *, train: int) -> Path:
    folder.mkdir()
    with RowWriter(folder / "rows.npy", columns=COLUMNS) as writer:
        for part in np.array_split(rows, 3):
            writer.append(part)
        writer.finish()
    splits = {
        "train": {"file": "rows.npy", "start": 0, "stop": train},
        "validation": {"file": "rows.npy", "start": train, "stop": len(rows)},
    }
    meta = {"format": FORMAT, "task": "made", "fingerprint": "f", "fitted_fingerprint": "g", "columns": COLUMNS}
    (folder / "store.json").write_text(json.dumps({**meta, "splits": splits, "fitted": {"a": 1}}))
    return folder


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(-(2**31), 2**31, size=(100, COLUMNS), dtype=np.int32)


@pytest.fixture
def store(tmp_path: Path, rows: np.ndarray) -> Path:
    return write_store(tmp_path / "store", rows, train=70)


def test_gather_reads_what_was_written(store: Path, rows: np.ndarray) -> None:
    opened = RowStore.open(store)
    assert (opened.num_rows("train"), opened.num_rows("validation")) == (70, 30)
    assert (opened.task, opened.fingerprint, opened.fitted_fingerprint) == ("made", "f", "g")
    assert opened.fitted == {"a": 1}
    assert opened.splits == ("train", "validation")
    ids = np.random.default_rng(1).integers(0, 70, size=500)
    np.testing.assert_array_equal(opened.gather("train", ids), rows[ids])
    np.testing.assert_array_equal(opened.gather("validation", np.arange(30)[::-1]), rows[70:][::-1])
    assert opened.gather("train", ids).dtype == np.int32


def test_gathered_rows_are_a_copy(store: Path, rows: np.ndarray) -> None:
    opened = RowStore.open(store)
    opened.gather("train", np.arange(3))[:] = 0
    np.testing.assert_array_equal(opened.gather("train", np.arange(3)), rows[:3])


@pytest.mark.parametrize("ids", [[-1], [0, 70], [2**40]])
def test_gather_refuses_rows_outside(store: Path, ids: list[int]) -> None:
    with pytest.raises(IndexError, match="70 rows"):
        RowStore.open(store).gather("train", np.array(ids))


def test_gather_refuses_fractions(store: Path) -> None:
    with pytest.raises(TypeError):
        RowStore.open(store).gather("train", np.array([0.5]))


def test_gather_of_nothing(store: Path) -> None:
    assert RowStore.open(store).gather("train", np.array([], dtype=np.int64)).shape == (0, COLUMNS)


def test_the_array_file_is_an_ordinary_npy(store: Path, rows: np.ndarray) -> None:
    np.testing.assert_array_equal(np.load(store / "rows.npy", allow_pickle=False), rows)


def test_empty_splits_and_files(tmp_path: Path, rows: np.ndarray) -> None:
    opened = RowStore.open(write_store(tmp_path / "a", rows, train=0))
    assert opened.num_rows("train") == 0
    with pytest.raises(IndexError):
        opened.gather("train", np.array([0]))
    nothing = RowStore.open(write_store(tmp_path / "b", rows[:0], train=0))
    assert nothing.num_rows("validation") == 0


def test_a_writer_continues_and_cuts_off_what_came_after(tmp_path: Path, rows: np.ndarray) -> None:
    path = tmp_path / "rows.npy"
    with RowWriter(path, columns=COLUMNS) as writer:
        writer.append(rows[:50])
    with RowWriter(path, columns=COLUMNS, rows=20) as writer:
        writer.append(rows[20:60])
        assert writer.rows == 60
        writer.finish()
    np.testing.assert_array_equal(np.load(path), rows[:60])
    with pytest.raises(UserError, match="shorter"):
        RowWriter(path, columns=COLUMNS, rows=61)


def test_a_writer_refuses_other_rows(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "rows.npy", columns=COLUMNS) as writer:
        for wrong in (np.zeros((2, 4), np.int32), np.zeros(5, np.int32), np.zeros((2, 5), np.int64)):
            with pytest.raises(ValueError, match="expected int32"):
                writer.append(wrong)


def test_missing_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="odist prepare"):
        RowStore.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"store\.json"):
        RowStore.open(tmp_path)
    (tmp_path / "x.partial").mkdir()
    with pytest.raises(UserError, match="unfinished"):
        RowStore.open(tmp_path / "x.partial")
    (tmp_path / "store.json").write_text("[]")
    with pytest.raises(UserError, match="not the record"):
        RowStore.open(tmp_path)


def test_unknown_split(store: Path) -> None:
    with pytest.raises(UserError, match="train, validation"):
        RowStore.open(store).num_rows("test")


def cut(store: Path) -> None:
    data = (store / "rows.npy").read_bytes()
    (store / "rows.npy").write_bytes(data[:-7])


def change(store: Path, **fields: object) -> None:
    meta = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**meta, **fields}))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda store: (store / "rows.npy").unlink(),
        lambda store: (store / "rows.npy").write_bytes(b"nothing"),
        lambda store: np.save(store / "rows.npy", np.zeros((100, COLUMNS))),
        lambda store: (store / "store.json").write_text("{"),
        lambda store: change(store, columns=6),
        lambda store: change(store, splits={"train": {"file": "rows.npy", "start": 0, "stop": 101}}),
    ],
)
def test_damage_is_told(store: Path, damage: object) -> None:
    RowStore.open(store)
    damage(store)  # type: ignore[operator]
    with pytest.raises(UserError, match="damaged"):
        RowStore.open(store)


def test_another_format_is_refused(store: Path) -> None:
    change(store, format="odist-rows-9")
    with pytest.raises(UserError, match="odist-rows-9"):
        RowStore.open(store)


def test_a_store_may_be_moved(store: Path, rows: np.ndarray, tmp_path: Path) -> None:
    shutil.move(store, tmp_path / "elsewhere")
    np.testing.assert_array_equal(RowStore.open(tmp_path / "elsewhere").gather("train", np.arange(70)), rows[:70])


def test_damaged_array_files_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"

    def refused(what: str, array: np.ndarray | None = None) -> None:
        if array is not None:
            np.save(path, array)
        with pytest.raises(UserError, match=what) as found:
            load_array(path, dtype="int32", shape=(None, 3))
        assert str(path) in str(found.value)
        assert "odist prepare" in str(found.value)

    refused("the file is missing")
    refused(r"expected int32 \[any, 3\], found int64 \[2, 3\]", np.zeros((2, 3), dtype=np.int64))
    refused(r"found int32 \[2, 4\]", np.zeros((2, 4), dtype=np.int32))
    refused(r"found int32 \[6\]", np.zeros(6, dtype=np.int32))
    refused("expected int32", np.asfortranarray(np.zeros((4, 3), dtype=np.int32)))
    refused("no array file", np.array([None, {}]))
    for rows in (0, 5, 100_000):  # nothing to map, read, mapped
        array = np.arange(3 * rows, dtype=np.int32).reshape(rows, 3)
        np.save(path, array)
        found = load_array(path, dtype="int32", shape=(rows, 3))
        assert np.array_equal(found, array)
        assert not found.flags.writeable
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0" * 4)
        refused(f"{len(whole) + 4:,} bytes instead of {len(whole):,}")
        path.write_bytes(whole[:-1])
        refused("damaged")
