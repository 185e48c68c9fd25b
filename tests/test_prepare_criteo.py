"""The Criteo preparation against a slow and obvious one, and against every kind of bad input."""

from __future__ import annotations

import gzip
import json
import math
import random
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odist.data.rows import RowStore
from odist.errors import Interrupted, UserError
from odist.prepare.criteo.prepare import CriteoOptions, CriteoReport, prepare_criteo
from odist.prepare.partial import Partial

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "criteo"
NAMES = [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
BUCKETS = 1009
ROOT = Path(__file__).parent.parent
Row = list[str]  # label, 13 integers, 26 hexadecimal values as text

# The reference: one value at a time, Python integers, no module of the project.


def splitmix64(key: int) -> int:
    z = (key + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def reference_id(column: int, text: str, buckets: int) -> int:
    value = {"": 2**32, "RARE": 2**32 + 1}[text] if text in ("", "RARE") else int(text, 16)
    return (splitmix64(column * 2**33 + value) >> 32) * buckets >> 32


def reference_numeric(text: str) -> int:
    if text == "":
        value = math.nan
    else:
        number = int(float(text))
        value = math.copysign(math.log1p(abs(number)), number) if number else 0.0
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def reference_rows(rows: list[Row], *, buckets: int = BUCKETS) -> np.ndarray:
    packed = [
        [int(float(row[0])) if row[0] else -1]
        + [reference_numeric(text) for text in row[1:14]]
        + [reference_id(column, text, buckets) for column, text in enumerate(row[14:])]
        for row in rows
    ]
    return np.array(packed, dtype=np.int32).reshape(-1, 40)


def make_rows(count: int, *, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        integers = [
            str(draw.choice([draw.randint(-3, 9), draw.randint(0, 5000), draw.randint(0, 10**7)])) for _ in range(13)
        ]
        values = [f"{draw.choice([draw.randrange(2**32), draw.randrange(20)]):08x}" for _ in range(26)]
        cells = [text if draw.random() > 0.2 else "" for text in integers + values]
        rows.append([str(int(draw.random() < 0.25)), *cells])
    return rows


def text_of(rows: list[Row], *, separator: str = "\t", end: str = "\n", labelled: bool = True) -> bytes:
    return "".join(separator.join(row if labelled else row[1:]) + end for row in rows).encode()


def prepare(inputs: Path | list[Path], output: Path, *, like: Path | None = None, **options: Any) -> CriteoReport:
    if like is None:
        options.setdefault("buckets", BUCKETS)
    names = [str(path) for path in (inputs if isinstance(inputs, list) else [inputs])]
    return prepare_criteo(names, output=output, like=like, options=CriteoOptions(**options))


def split_rows(store: Path, split: str) -> np.ndarray:
    opened = RowStore.open(store)
    return opened.gather(split, np.arange(opened.num_rows(split)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def rows() -> list[Row]:
    return make_rows(300)


@pytest.fixture
def file(tmp_path: Path, rows: list[Row]) -> Path:
    path = tmp_path / "rows.txt"
    path.write_bytes(text_of(rows))
    return path


# The hash


def test_hash_vectors() -> None:
    from odist.prepare.criteo import kernels as kernels

    assert kernels.HASH == "odist-hash-1"
    # First outputs of splitmix64 for two seeds, as published with its reference implementation.
    assert int(kernels.splitmix64(np.uint64(0))) == 0xE220A8397B1DCDAF
    assert int(kernels.splitmix64(np.uint64(1234567))) == 6457827717110365317
    # Fixed for ever: a change here makes every store and model of before unusable.
    vectors = {(0, 0x68FD1E64): 298074, (25, 0xFFFFFFFF): 640776, (3, 2**32): 737705, (3, 2**32 + 1): 102518}
    for (column, value), expected in vectors.items():
        assert int(kernels.bucket(column, np.uint64(value), 1_000_000)) == expected


def test_equal_values_of_two_columns_differ() -> None:
    ids = {reference_id(column, "05db9164", 2**31 - 1) for column in range(26)}
    assert len(ids) == 26


# The whole transformation


def test_against_the_reference(tmp_path: Path, file: Path, rows: list[Row]) -> None:
    report = prepare(file, tmp_path / "store")
    assert report.rows == {"train": 240, "validation": 60}
    expected = reference_rows(rows)
    np.testing.assert_array_equal(split_rows(tmp_path / "store", "train"), expected[:240])
    np.testing.assert_array_equal(split_rows(tmp_path / "store", "validation"), expected[240:])
    assert report.click_rate == pytest.approx(expected[:, 0].mean())
    assert report.missing == {name: sum(row[1 + i] == "" for row in rows) for i, name in enumerate(NAMES)}
    assert report.bad_rows == {}
    store = RowStore.open(tmp_path / "store")
    assert (store.task, store.fingerprint, store.columns) == ("criteo", report.fingerprint, 40)
    values = expected[:240, 1:14].copy().view(np.float32).astype(np.float64)
    np.testing.assert_allclose(store.fitted["numeric_mean"], np.nanmean(values, axis=0), rtol=1e-12)
    np.testing.assert_allclose(store.fitted["numeric_std"], np.nanstd(values, axis=0), rtol=1e-12)


def as_parquet(path: Path, rows: list[Row], *, numbers: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {}
    for index, name in enumerate(["label", *NAMES]):
        cells = [row[index] or None for row in rows]
        if not numbers:
            columns[name] = pa.array(cells, type=pa.string())
        elif name.startswith("C"):
            columns[name] = pa.array([cell and int(cell, 16) for cell in cells], type=pa.int64())
        elif name == "I1":  # as pandas keeps integers with gaps
            columns[name] = pa.array([math.nan if cell is None else float(cell) for cell in cells], type=pa.float64())
        else:
            columns[name] = pa.array([cell and int(cell) for cell in cells], type=pa.int32())
    pq.write_table(pa.table(dict(reversed(columns.items()))), path)


def write_as(folder: Path, kind: str, rows: list[Row]) -> Path:
    path = folder / f"{kind}.txt"
    floats = [[text and f"{int(text)}.0" for text in row[:14]] + row[14:] for row in rows]
    header = ",".join(["label", *NAMES]) + "\n"
    whole = {
        "gzip": lambda: gzip.compress(text_of(rows)),
        "two gzip members": lambda: gzip.compress(text_of(rows[:100])) + gzip.compress(text_of(rows[100:])),
        "no last newline": lambda: text_of(rows)[:-1],
        "windows": lambda: text_of(rows, end="\r\n"),
        "windows, no last line end": lambda: text_of(rows, end="\r\n")[:-2],
        "byte order mark": lambda: b"\xef\xbb\xbf" + text_of(rows),
        "csv": lambda: header.encode() + text_of(floats, separator=","),
        "csv, mark, windows": lambda: b"\xef\xbb\xbf" + header.replace("\n", "\r\n").encode() + text_of(floats, separator=",", end="\r\n"),
        "csv, gzip": lambda: gzip.compress(header.encode() + text_of(floats, separator=",")),
        "upper case": lambda: text_of([row[:14] + [text.upper() for text in row[14:]] for row in rows]),
    }  # fmt: skip
    if kind in whole:
        path.write_bytes(whole[kind]())
        return path
    parquet = folder / kind
    parquet.mkdir()
    for number, (start, stop) in enumerate([(0, 120), (120, 121), (121, len(rows))]):
        as_parquet(parquet / f"part-{number + 9}.parquet", rows[start:stop], numbers=kind.endswith("numbers"))
    return parquet


@pytest.mark.parametrize(
    "kind",
    [
        *("gzip", "two gzip members", "no last newline", "windows", "windows, no last line end", "byte order mark"),
        *("csv", "csv, mark, windows", "csv, gzip", "upper case", "parquet strings", "parquet numbers"),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, file: Path, rows: list[Row], kind: str) -> None:
    plain = prepare(file, tmp_path / "plain")
    other = prepare(write_as(tmp_path, kind, rows), tmp_path / "other")
    assert other.fingerprint == plain.fingerprint
    assert other.missing == plain.missing
    for split in ("train", "validation"):
        np.testing.assert_array_equal(split_rows(tmp_path / "other", split), split_rows(tmp_path / "plain", split))


def test_without_isal_gzip_reads_the_same(
    tmp_path: Path, file: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = write_as(tmp_path, "gzip", rows)
    monkeypatch.setitem(sys.modules, "isal", None)
    assert prepare(packed, tmp_path / "a").fingerprint == prepare(file, tmp_path / "b").fingerprint
    packed.write_bytes(packed.read_bytes()[:-50])
    with pytest.raises(UserError, match="breaks off"):
        prepare(packed, tmp_path / "c")


def test_rows_without_labels(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "test.txt").write_bytes(text_of(rows, labelled=False))
    report = prepare(tmp_path / "test.txt", tmp_path / "store", validation_fraction=0.0)
    assert (report.rows, report.click_rate) == ({"train": 300, "validation": 0}, None)
    np.testing.assert_array_equal(
        split_rows(tmp_path / "store", "train"), reference_rows([["", *row[1:]] for row in rows])
    )


def test_several_files_in_order_of_their_numbers(tmp_path: Path, file: Path, rows: list[Row]) -> None:
    (tmp_path / "day_2").write_bytes(gzip.compress(text_of(rows[:130])))
    (tmp_path / "day_10").write_bytes(text_of(rows[130:])[:-1])
    one = prepare(file, tmp_path / "one")
    several = prepare(tmp_path / "day_*", tmp_path / "several")
    assert several.fingerprint == one.fingerprint
    assert [source["rows"] for source in several.sources] == [130, 170]
    turned = prepare([tmp_path / "day_10", tmp_path / "day_2"], tmp_path / "turned")
    assert turned.fingerprint != one.fingerprint


@pytest.mark.parametrize("name", ["train_tiny.csv.gz", "test.txt.gz", "criteo_sample.txt"])
def test_real_rows_against_the_reference(tmp_path: Path, name: str) -> None:
    if not (REAL / name).is_file():
        pytest.skip(f"real data not present: ../shared/data/criteo/{name}")
    data = (REAL / name).read_bytes()
    lines = (gzip.decompress(data) if name.endswith(".gz") else data).decode().split("\n")[:-1]
    separator = "," if name == "criteo_sample.txt" else "\t"
    rows = [line.split(separator) for line in lines[1 if separator == "," else 0 :]]
    if name == "test.txt.gz":
        rows = [["", *row] for row in rows]
    report = prepare(REAL / name, tmp_path / "store", buckets=1_000_000)
    assert sum(report.rows.values()) == len(rows) in (6667, 12_120, 200)
    both = np.concatenate([split_rows(tmp_path / "store", split) for split in ("train", "validation")])
    np.testing.assert_array_equal(both, reference_rows(rows, buckets=1_000_000))


def test_all_real_rows_are_good(tmp_path: Path) -> None:
    if not (REAL / "train.txt.gz").is_file():
        pytest.skip("real data not present: ../shared/data/criteo/train.txt.gz")
    report = prepare(REAL / "train.txt.gz", tmp_path / "store")
    assert (sum(report.rows.values()), report.bad_rows) == (91_426, {})
    assert report.click_rate == pytest.approx(0.2561, abs=5e-5)


def test_numbers_at_the_edges(tmp_path: Path) -> None:
    row = ["1", "-3", "0", "-0", "4095", "4096", "999999999999999999", "-999999999999999999", "7.0", "7.000"]
    row += ["007", "", "1", "2", "0", "f", "00000000", "ffffffff", *[""] * 22]
    (tmp_path / "a").write_bytes(text_of([row]))
    prepare(tmp_path / "a", tmp_path / "store", validation_fraction=0.0)
    plain = [*row[:10], "7", *row[11:]]
    np.testing.assert_array_equal(split_rows(tmp_path / "store", "train"), reference_rows([plain]))
    packed = split_rows(tmp_path / "store", "train")[0]
    assert packed[11] == 0x7FC00000  # the one NaN that is written
    assert RowStore.open(tmp_path / "store").fitted["numeric_std"] == [1.0] * 13


def test_blocks_and_threads_change_nothing(tmp_path: Path, file: Path) -> None:
    one = prepare(file, tmp_path / "one", threads=1)
    many = prepare(file, tmp_path / "many", threads=3, block_bytes=701)
    assert one.fingerprint == many.fingerprint
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_many_chunks_fit_as_one(tmp_path: Path) -> None:
    base = make_rows(500, seed=3)
    (tmp_path / "long").write_bytes(text_of(base) * 300)  # 150,000 rows: three chunks of a sweep
    prepare(tmp_path / "long", tmp_path / "store", validation_fraction=0.1, split="random", min_count=200)
    store = RowStore.open(tmp_path / "store")
    rows = split_rows(tmp_path / "store", "train")
    values = rows[:, 1:14].copy().view(np.float32).astype(np.float64)
    np.testing.assert_allclose(store.fitted["numeric_mean"], np.nanmean(values, axis=0), rtol=1e-12)
    np.testing.assert_allclose(store.fitted["numeric_std"], np.nanstd(values, axis=0), rtol=1e-12)
    assert store.num_rows("validation") == pytest.approx(15_000, abs=600)  # five standard deviations


# Splits, and what is fitted


def test_random_split_is_drawn_by_row_number(tmp_path: Path, file: Path, rows: list[Row]) -> None:
    def drawn(seed: int) -> np.ndarray:
        key = splitmix64(seed)
        return np.array([(splitmix64((key + row) % 2**64) >> 11) < 0.3 * 2**53 for row in range(len(rows))])

    expected = reference_rows(rows)
    for seed in (0, 7):
        output = tmp_path / f"seed-{seed}"
        prepare(file, output, split="random", validation_fraction=0.3, split_seed=seed, block_bytes=2000)
        np.testing.assert_array_equal(split_rows(output, "validation"), expected[drawn(seed)])
        np.testing.assert_array_equal(split_rows(output, "train"), expected[~drawn(seed)])
    assert (drawn(0) != drawn(7)).any()


@pytest.mark.parametrize("split", ["time", "random"])
def test_only_the_training_part_is_fitted(tmp_path: Path, file: Path, rows: list[Row], split: str) -> None:
    prepare(file, tmp_path / "a", split=split, min_count=4)
    first = RowStore.open(tmp_path / "a")
    held_out = {row.tobytes() for row in reference_rows(rows)[240:]}
    if split == "random":
        key = splitmix64(0)
        mask = [(splitmix64((key + row) % 2**64) >> 11) < 0.2 * 2**53 for row in range(len(rows))]
        held_out = {row.tobytes() for row in reference_rows(rows)[mask]}
    fresh = iter(make_rows(300, seed=99))
    changed = [next(fresh) if reference_rows([row])[0].tobytes() in held_out else row for row in rows]
    assert changed != rows
    (tmp_path / "changed").write_bytes(text_of(changed))
    prepare(tmp_path / "changed", tmp_path / "b", split=split, min_count=4)
    second = RowStore.open(tmp_path / "b")
    assert second.fitted == first.fitted
    assert second.fitted_fingerprint == first.fitted_fingerprint
    assert second.fingerprint != first.fingerprint
    (tmp_path / "train").write_bytes(text_of([make_rows(1, seed=5)[0], *rows[1:]]))
    prepare(tmp_path / "train", tmp_path / "c", split=split, min_count=4)
    assert RowStore.open(tmp_path / "c").fitted_fingerprint != first.fitted_fingerprint


@pytest.mark.parametrize("min_count", [1, 3, 255])
def test_rare_ids(tmp_path: Path, file: Path, rows: list[Row], min_count: int) -> None:
    prepare(file, tmp_path / "store", min_count=min_count)
    expected = reference_rows(rows)
    seen = Counter(expected[:240, 14:].ravel().tolist())
    for row in expected:
        for column in range(26):
            if seen[int(row[14 + column])] < min_count:
                row[14 + column] = reference_id(column, "RARE", BUCKETS)
    np.testing.assert_array_equal(split_rows(tmp_path / "store", "train"), expected[:240])
    np.testing.assert_array_equal(split_rows(tmp_path / "store", "validation"), expected[240:])


@pytest.mark.parametrize("min_count", [0, 3])
def test_like_uses_the_other_stores_meaning(tmp_path: Path, file: Path, rows: list[Row], min_count: int) -> None:
    prepare(file, tmp_path / "base", min_count=min_count)
    (tmp_path / "late").write_bytes(text_of(rows[240:]))
    report = prepare(tmp_path / "late", tmp_path / "late-store", like=tmp_path / "base")
    base, late = RowStore.open(tmp_path / "base"), RowStore.open(tmp_path / "late-store")
    assert report.rows == {"train": 0, "validation": 60}
    assert late.fitted_fingerprint == base.fitted_fingerprint
    assert late.fitted == base.fitted
    np.testing.assert_array_equal(
        split_rows(tmp_path / "late-store", "validation"), split_rows(tmp_path / "base", "validation")
    )
    again = prepare(tmp_path / "late", tmp_path / "third", like=tmp_path / "late-store")
    assert again.fingerprint == report.fingerprint


@pytest.mark.parametrize(
    ("option", "value"),
    [("buckets", 7), ("min_count", 9), ("split", "time"), ("split_seed", 1)],
)
def test_like_refuses_contradictions(tmp_path: Path, file: Path, option: str, value: Any) -> None:
    prepare(file, tmp_path / "base")
    with pytest.raises(UserError, match=option):
        prepare(file, tmp_path / "other", like=tmp_path / "base", **{option: value})
    prepare(file, tmp_path / "same", like=tmp_path / "base", buckets=BUCKETS, min_count=0)


def test_like_needs_a_sound_store(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        prepare(file, tmp_path / "x", like=tmp_path / "none")
    prepare(file, tmp_path / "base", min_count=2)
    (tmp_path / "base" / "rare.npy").write_bytes(b"")
    with pytest.raises(UserError, match="rare"):
        prepare(file, tmp_path / "x", like=tmp_path / "base")
    assert not (tmp_path / "x.partial").exists()


@pytest.mark.parametrize(
    "options",
    [
        *({"buckets": 0}, {"buckets": 2**31}, {"min_count": 256}, {"min_count": -1}, {"split": "first"}),
        *({"validation_fraction": 1.0}, {"validation_fraction": -0.1}, {"split_seed": -1}, {"bad_rows": "keep"}),
        {"format": "json"},
    ],
)
def test_wrong_options(tmp_path: Path, file: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        prepare(file, tmp_path / "store", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.txt"]


# Bad rows

BAD: dict[str, tuple[Callable[[Row], Row], str, str]] = {
    "a column too few": (lambda row: row[:-1], "columns", "39 columns instead of 40"),
    "a column too many": (lambda row: [*row, ""], "columns", "41 columns instead of 40"),
    "words": (lambda row: ["hello"], "columns", "1 columns instead of 40"),
    "no line": (lambda row: [""], "empty", "an empty line"),
    "label 2": (lambda row: ["2", *row[1:]], "label", "the label is not 0 or 1"),
    "label 10": (lambda row: ["10", *row[1:]], "label", "the label is not 0 or 1"),
    "label missing": (lambda row: ["", *row[1:]], "label", "the label is not 0 or 1"),
    "letter in an integer": (lambda row: [*row[:3], "1x", *row[4:]], "integer", "I3 is not an integer"),
    "minus alone": (lambda row: [*row[:1], "-", *row[2:]], "integer", "I1 is not an integer"),
    "a fraction": (lambda row: [*row[:13], "1.5", *row[14:]], "integer", "I13 is not an integer"),
    "19 digits": (lambda row: [*row[:2], "1" * 19, *row[3:]], "integer", "I2 is not an integer"),
    "blank": (lambda row: [*row[:2], " 1", *row[3:]], "integer", "I2 is not an integer"),
    "not hexadecimal": (lambda row: [*row[:14], "05db916g", *row[15:]], "categorical", "C1 is not a hexadecimal"),
    "9 digits": (lambda row: [*row[:20], "05db91640", *row[21:]], "categorical", "C7 is not a hexadecimal"),
    "last value bad": (lambda row: [*row[:39], "05db916!"], "categorical", "C26 is not a hexadecimal"),
    "last value long": (lambda row: [*row[:39], "05db91640"], "categorical", "C26 is not a hexadecimal"),
    "a carriage return within": (lambda row: [*row[:39], "05d\rb916"], "categorical", "C26 is not a hexadecimal"),
    "a zero byte": (lambda row: [*row[:5], "\0", *row[6:]], "integer", "I5 is not an integer"),
    "not ASCII": (lambda row: [*row[:5], "é", *row[6:]], "integer", "I5 is not an integer"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows(tmp_path: Path, rows: list[Row], kind: str) -> None:
    spoil, reason, words = BAD[kind]
    spoiled = [spoil(row) if index in (7, 250) else row for index, row in enumerate(rows)]
    path = tmp_path / "rows.txt"
    path.write_bytes(text_of(spoiled))
    with pytest.raises(UserError) as refused:
        prepare(path, tmp_path / "store")
    assert f"{path}:8: {words}" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.txt"]
    report = prepare(path, tmp_path / "store", bad_rows="skip", block_bytes=5000)
    assert report.bad_rows == {reason: 2}
    assert [where.split(": ")[0] for where in report.bad_locations] == [f"{path}:8", f"{path}:251"]
    assert all(words in where for where in report.bad_locations)
    kept = reference_rows([row for index, row in enumerate(rows) if index not in (7, 250)])
    both = np.concatenate([split_rows(tmp_path / "store", split) for split in ("train", "validation")])
    np.testing.assert_array_equal(both, kept)
    assert sum(report.missing.values()) == sum(text == "" for i, row in enumerate(rows) if i not in (7, 250) for text in row[1:])  # fmt: skip


def test_bad_rows_are_located_by_file_and_line(tmp_path: Path, rows: list[Row]) -> None:
    header = ",".join(["label", *NAMES]) + "\n"
    (tmp_path / "a").write_bytes(text_of(rows))
    (tmp_path / "b").write_bytes(
        header.encode() + text_of([*rows[:5], ["x"], *rows[5:9], *[["y"]] * 20], separator=",")
    )
    with pytest.raises(UserError, match=r"b:7: 1 columns.*21 of the first 330 rows are bad") as refused:
        prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "store")
    assert "--bad-rows skip" in str(refused.value)
    report = prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "store", bad_rows="skip", block_bytes=1000)
    assert report.bad_rows == {"columns": 21}
    assert len(report.bad_locations) == 10
    assert report.bad_locations[1].startswith(f"{tmp_path / 'b'}:12:")


@pytest.mark.parametrize("value", ["1\t2", 'a"b', "xyz", "123456789"])
def test_bad_rows_of_parquet(tmp_path: Path, rows: list[Row], value: str) -> None:
    spoiled = [[*row[:30], value, *row[31:]] if index == 12 else row for index, row in enumerate(rows)]
    as_parquet(tmp_path / "rows.parquet", spoiled, numbers=False)
    with pytest.raises(UserError, match=r"rows\.parquet:13: C17 is not a hexadecimal"):
        prepare(tmp_path / "rows.parquet", tmp_path / "store")


def test_parquet_numbers_out_of_range(tmp_path: Path, rows: list[Row]) -> None:
    wide = [[*row[:30], {3: "1ffffffff", 5: "-1"}.get(index, row[30]), *row[31:]] for index, row in enumerate(rows)]
    as_parquet(tmp_path / "rows.parquet", wide, numbers=True)
    report = prepare(tmp_path / "rows.parquet", tmp_path / "store", bad_rows="skip")
    assert report.bad_rows == {"categorical": 2}
    assert [where.split(":")[1] for where in report.bad_locations] == ["4", "6"]


# Bad files


def spoil_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda text: b"", "is empty"),
    "only newlines": (lambda text: b"\n\n", "holds no lines"),
    "empty within gzip": (lambda text: gzip.compress(b""), "holds no lines"),
    "breaks off": (lambda text: gzip.compress(text)[:-3000], r"breaks off near byte [\d,]+ of"),
    "breaks off in the check sum": (lambda text: gzip.compress(text)[:-4], "breaks off"),
    "a changed byte": (lambda text: (g := gzip.compress(text))[: len(g) // 2] + b"\xff\x00\xff" + g[len(g) // 2 + 3 :], "is damaged"),
    "zip": (lambda text: b"PK\x03\x04" + text, "zip file"),
    "other text": (lambda text: b"Dear reader,\n" * 50, "2 columns"),
    "38 columns": (lambda text: b"1" + b"\t" * 37 + b"\n", "38 columns between tabs"),
    "header only": (lambda text: (",".join(["label", *NAMES]) + "\n").encode(), "no rows"),
    "other header": (lambda text: (",".join(["label", *reversed(NAMES)]) + "\n").encode() + text.replace(b"\t", b","), "other columns"),
    "broken Parquet": (lambda text: b"PAR1" + text, "Parquet file that cannot be read"),
    "no line end": (lambda text: text + b"0" * 3_000_000, "longer than"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path: Path, rows: list[Row], kind: str) -> None:
    make, words = BAD_FILES[kind]
    path = spoil_file(tmp_path / "rows.txt", make(text_of(rows * 5)))
    good = spoil_file(tmp_path / "good.txt", text_of(rows))
    for inputs in (path, [good, path]):
        with pytest.raises(UserError, match=words) as refused:
            prepare(inputs, tmp_path / "store")
        assert str(path) in str(refused.value)
        assert sorted(child.name for child in tmp_path.iterdir()) == ["good.txt", "rows.txt"]


def test_inputs_that_name_nothing_or_twice(tmp_path: Path, file: Path) -> None:
    (tmp_path / "folder").mkdir()
    for wrong, words in {
        "none.txt": "no such file",
        "none-*.txt": "no file matches",
        "folder": r"without \*\.parquet",
    }.items():
        with pytest.raises(UserError, match=words):
            prepare(tmp_path / wrong, tmp_path / "store")
    with pytest.raises(UserError, match="named twice"):
        prepare([file, tmp_path / "*.txt"], tmp_path / "store")
    with pytest.raises(UserError, match="no input"):
        prepare([], tmp_path / "store")
    with pytest.raises(UserError, match="not a Parquet"):
        prepare(file, tmp_path / "store", format="parquet")
    with pytest.raises(UserError, match="between commas"):
        prepare(file, tmp_path / "store", format="csv")


def test_labelled_and_unlabelled_do_not_mix(tmp_path: Path, file: Path, rows: list[Row]) -> None:
    bare = spoil_file(tmp_path / "test.txt", text_of(rows, labelled=False))
    for inputs in ([file, bare], [bare, file]):
        with pytest.raises(UserError, match=r"rows\.txt has labels, .*test\.txt has none"):
            prepare(inputs, tmp_path / "store")


def test_parquet_without_a_column(tmp_path: Path, rows: list[Row]) -> None:
    import pyarrow.parquet as pq

    as_parquet(tmp_path / "rows.parquet", rows, numbers=True)
    table = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(table.drop_columns(["C9"]), tmp_path / "less.parquet")
    with pytest.raises(UserError, match="lacks the columns C9"):
        prepare(tmp_path / "less.parquet", tmp_path / "store")
    pq.write_table(table.drop_columns(["label"]), tmp_path / "bare.parquet")
    assert prepare(tmp_path / "bare.parquet", tmp_path / "store").click_rate is None


def test_nothing_usable_and_too_few(tmp_path: Path, rows: list[Row]) -> None:
    bad = spoil_file(tmp_path / "bad", text_of([["2", *row[1:]] for row in rows]))
    with pytest.raises(UserError, match="no row of the input could be used"):
        prepare(bad, tmp_path / "store", bad_rows="skip")
    one = spoil_file(tmp_path / "one", text_of(rows[:1]))
    with pytest.raises(UserError, match="one row cannot be divided"):
        prepare(one, tmp_path / "store", validation_fraction=0.9)


# Outputs


def test_done_already(tmp_path: Path, file: Path) -> None:
    first = prepare(file, tmp_path / "store")
    before = contents(tmp_path / "store")
    again = prepare(file, tmp_path / "store")
    assert (first.reused, again.reused) == (False, True)
    assert again.fingerprint == first.fingerprint
    assert contents(tmp_path / "store") == before
    with pytest.raises(UserError, match=r"options\.buckets \(1009 there, 5 here\)"):
        prepare(file, tmp_path / "store", buckets=5)
    file.write_bytes(file.read_bytes() + text_of(make_rows(1, seed=8)))
    with pytest.raises(UserError, match="sources"):
        prepare(file, tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_taken_outputs(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        prepare(file, file)
    with pytest.raises(UserError, match="other files"):
        prepare(file, tmp_path)
    (tmp_path / "empty").mkdir()
    prepare(file, tmp_path / "empty")
    prepare(file, tmp_path / "deep" / "er" / "store")
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "mine").write_text("")
    with pytest.raises(UserError, match="other files"):
        prepare(file, tmp_path / "x")
    assert (tmp_path / "x.partial" / "mine").exists()


def test_two_at_once(tmp_path: Path, file: Path) -> None:
    with Partial(tmp_path / "store", request={}, full_disk=""), pytest.raises(UserError, match="another"):
        prepare(file, tmp_path / "store")


FULL_DISK = """
import resource, sys
from pathlib import Path
from odist.errors import UserError
from odist.prepare.criteo.prepare import CriteoOptions, prepare_criteo
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    prepare_criteo([sys.argv[1]], output=Path(sys.argv[2]), options=CriteoOptions(buckets=1009, block_bytes=5000, min_count=2))
except UserError as error:
    print(error)
"""


def test_a_full_disk(tmp_path: Path, file: Path) -> None:
    code = [sys.executable, "-c", FULL_DISK, str(file), str(tmp_path / "store"), "30000"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "no space left" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["rows.txt"]


# Interruption


class After:
    """`stop` that becomes true at its n-th call."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self) -> bool:
        self.calls -= 1
        return self.calls < 0


@pytest.mark.parametrize("kind", ["plain", "gzip", "csv, gzip", "windows", "parquet strings"])
@pytest.mark.parametrize("split", ["time", "random"])
def test_an_interrupted_preparation_ends_in_the_same_bytes(
    tmp_path: Path, rows: list[Row], kind: str, split: str
) -> None:
    rows = [*rows[:50], ["2", *rows[0][1:]], *rows[50:]]
    first = spoil_file(tmp_path / "first.txt", text_of(make_rows(40, seed=4)))
    path = write_as(tmp_path, kind, rows) if kind != "plain" else spoil_file(tmp_path / "plain", text_of(rows))
    options = CriteoOptions(buckets=BUCKETS, split=split, min_count=3, bad_rows="skip", block_bytes=4000)
    inputs = [str(first), str(path)]
    whole = prepare_criteo(inputs, output=tmp_path / "whole", options=options)
    assert whole.rows["train"] + whole.rows["validation"] == 340
    interruptions, stopped = 0, True
    while stopped:  # fitting and sealing are begun anew each time, so they get more time than reading does
        stopped = False
        try:
            report = prepare_criteo(
                inputs, output=tmp_path / "parts", options=options, stop=After(1 + interruptions // 8)
            )
        except Interrupted:
            assert not (tmp_path / "parts").exists()
            interruptions, stopped = interruptions + 1, True
    assert interruptions > 4
    assert not (tmp_path / "parts.partial").exists()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert report.fingerprint == whole.fingerprint


@pytest.mark.parametrize("calls", range(0, 26, 2))
def test_interrupted_anywhere(tmp_path: Path, file: Path, calls: int) -> None:
    options = CriteoOptions(buckets=BUCKETS, min_count=3, block_bytes=8000)
    prepare_criteo([str(file)], output=tmp_path / "whole", options=options)
    stop = After(calls)
    with pytest.raises(Interrupted) if calls < 8 else _maybe():
        prepare_criteo([str(file)], output=tmp_path / "parts", options=options, stop=stop)
    prepare_criteo([str(file)], output=tmp_path / "parts", options=options)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_the_journal_of_an_earlier_version_is_continued(tmp_path: Path, file: Path) -> None:
    options = CriteoOptions(buckets=BUCKETS, block_bytes=8000)
    prepare_criteo([str(file)], output=tmp_path / "whole", options=options)
    with pytest.raises(Interrupted):
        prepare_criteo([str(file)], output=tmp_path / "parts", options=options, stop=After(2))
    path = tmp_path / "parts.partial" / "journal.json"
    content = json.loads(path.read_text())
    assert content["journal"]["rows"] > 0
    content["journal"]["seconds"] = 12.5  # was kept once
    path.write_text(json.dumps(content))
    prepare_criteo([str(file)], output=tmp_path / "parts", options=options)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


class _maybe:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, Interrupted)


KILLED = """
import os, signal, sys
from pathlib import Path
from odist.prepare.criteo.prepare import CriteoOptions, prepare_criteo
def progress(step, done, total, counts):
    if counts["rows"] > 150:
        os.kill(os.getpid(), signal.SIGKILL)
options = CriteoOptions(buckets=1009, block_bytes=4000, journal_seconds=float(sys.argv[3]))
prepare_criteo([sys.argv[1]], output=Path(sys.argv[2]), options=options, progress=progress)
"""


@pytest.mark.parametrize("journal_seconds", [0.0, 60.0])
def test_a_killed_preparation_continues(tmp_path: Path, file: Path, journal_seconds: float) -> None:
    prepare(file, tmp_path / "whole")
    code = [sys.executable, "-c", KILLED, str(file), str(tmp_path / "parts"), str(journal_seconds)]
    assert subprocess.run(code, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    journal = json.loads((tmp_path / "parts.partial" / "journal.json").read_text())["journal"]
    assert (journal["rows"] > 0) == (journal_seconds == 0.0)
    with pytest.raises(UserError, match="unfinished"):
        prepare(file, tmp_path / "parts", buckets=8)
    with pytest.raises(UserError, match="unfinished"):
        RowStore.open(tmp_path / "parts.partial")
    prepare(file, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_complete_folder_without_its_name_gets_it(tmp_path: Path, file: Path) -> None:
    prepare(file, tmp_path / "store")
    before = contents(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "store.partial")
    assert prepare(file, tmp_path / "store").reused
    assert contents(tmp_path / "store") == before


def test_progress_ends_at_the_end(tmp_path: Path, file: Path, rows: list[Row]) -> None:
    packed = spoil_file(tmp_path / "packed", gzip.compress(text_of(rows)))
    told: list[tuple[int, int, int]] = []

    def progress(step: str, done: int, total: int, counts: Mapping[str, int]) -> None:
        assert step == "read"
        told.append((done, total, counts["rows"]))

    prepare_criteo(
        [str(file), str(packed)],
        output=tmp_path / "store",
        options=CriteoOptions(buckets=BUCKETS, block_bytes=3000),
        progress=progress,
    )
    size = file.stat().st_size + packed.stat().st_size
    assert told == sorted(told)
    assert told[-1] == (size, size, 600)


def test_the_command_runs(tmp_path: Path, file: Path) -> None:
    code = [
        sys.executable,
        "-m",
        "odist.cli.main",
        "prepare",
        "criteo",
        "--input",
        str(file),
        "--output",
        str(tmp_path / "s"),
    ]
    done = subprocess.run([*code, "--buckets", "100"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert RowStore.open(tmp_path / "s").num_rows("validation") == 60
