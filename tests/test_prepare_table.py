"""`odist prepare table`: any table by a schema, against a slow and obvious reading of the same rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk
from conftest import StopAfter, odist

from odist.data.layout import RowLayout, keys_of, viewed
from odist.data.rows import RowStore
from odist.errors import Interrupted, UserError
from odist.measure.exact import binary_results
from odist.prepare.table import fit
from odist.prepare.table.prepare import TableOptions, TableReport, prepare_table
from odist.run.folder import Run

Row = dict[str, Any]
SCHEMA = """
label: [clicked, bought]
numeric: {age: log, price: {transform: standard}, hour: none}
categorical:
  site: {buckets: 50}
  country: {encoding: vocabulary, min_count: 3}
  app:
weight: importance
time: at
key: request
buckets: 100
"""


def make_rows(count: int, *, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    places = list(range(count))
    draw.shuffle(places)
    rows = []
    for place in places:
        score = draw.gauss(0, 1)
        rows.append(
            {
                "clicked": int(score > 0.3),
                "bought": int(score > 1),
                "age": draw.choice([None, round(20 + 5 * score, 2), -3]),
                "price": draw.choice([None, 9.5 + score]),
                "hour": draw.randrange(24),
                "site": draw.choice([None, f"s{draw.randrange(40)}", "é,\"x'"]),
                "country": draw.choice(["de", "us", "us", None, f"c{draw.randrange(60)}"]),
                "app": draw.randrange(7),
                "importance": draw.choice([0.5, 1, 2]),
                "at": f"2024-05-{1 + place // 60 % 28:02d} 10:{place % 60:02d}:00" if place < 1680 else None,
                "request": f"r{place}-ü",
                "unused": draw.random(),
            }
        )
    return rows


def write_csv(path: Path, rows: list[Row], *, separator: str = ",") -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: Path, rows: list[Row]) -> Path:
    table = pa.Table.from_pylist(rows)
    times = table.column("at").cast(pa.timestamp("ms"))
    countries = table.column("country").dictionary_encode()
    table = table.set_column(table.column_names.index("at"), "at", times)
    pq.write_table(table.set_column(table.column_names.index("country"), "country", countries), path, row_group_size=70)
    return path


def prepare(inputs: Path | list[Path], output: Path, *, schema: str | None = SCHEMA, **options: Any) -> TableReport:
    if schema is not None:
        options["schema"] = output.parent / "schema.yaml"
        options["schema"].write_text(schema, encoding="utf-8")
    like, stop = options.pop("like", None), options.pop("stop", None)
    names = [str(path) for path in (inputs if isinstance(inputs, list) else [inputs])]
    return prepare_table(names, output=output, like=like, options=TableOptions(**options), stop=stop)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "store.json"}


def split_of(store: RowStore, split: str) -> np.ndarray:
    return store.gather(split, np.arange(store.num_rows(split)))


# An oracle of the hash: Python integers, one value at a time.


def splitmix64(key: int) -> int:
    z = (key + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def bucket(column: str, value: object, buckets: int) -> int:
    data = b"\xff" if value is None else str(value).encode()
    return (splitmix64(fnv1a(data) ^ splitmix64(fnv1a(column.encode()))) >> 32) * buckets >> 32


def test_hash_vectors_are_fixed_for_ever() -> None:
    from odist.prepare.table.hashing import HASH, hash_column

    assert fnv1a(b"foobar") == 0x85944171F73967E8  # of the draft's own test vectors
    values = pa.array([b"de", None, "ü".encode()])
    found = hash_column(values, name="country", buckets=1_000_000).tolist()
    assert (HASH, found) == ("odist-hash-2", [bucket("country", value, 1_000_000) for value in ("de", None, "ü")])
    assert found == [167829, 62758, 224962]


def log(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value) if value else 0.0


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return make_rows(600)


@pytest.mark.parametrize("kind", ["csv", "tsv.gz", "parquet"])
def test_a_table_against_the_oracle(kind: str, rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        write_parquet(path, rows)
    else:
        write_csv(path, rows, separator="\t" if kind.startswith("tsv") else ",")
    report = prepare(path, tmp_path / "store")
    assert (report.rows, report.bad_rows) == ({"train": 480, "validation": 120}, {})
    store = RowStore.open(tmp_path / "store")
    layout = RowLayout.of(store.meta)
    ordered = sorted(rows, key=lambda row: row["at"])
    parts = {"train": ordered[:480], "validation": ordered[480:]}
    counts = Counter(row["country"] for row in parts["train"] if row["country"] is not None)
    kept = sorted((name for name, count in counts.items() if count >= 3), key=lambda name: (-counts[name], name))
    assert [entry.get("values") for entry in store.fitted["categorical"]] == [None, kept, None]
    country_of = {None: 0, **{name: 2 + place for place, name in enumerate(kept)}}
    first = {entry["name"]: entry["first"] for entry in store.fitted["categorical"]}
    assert first == {"site": 100, "country": 150, "app": 0}
    assert report.embedding_rows == 150 + 2 + len(kept)
    texts = store.texts()
    for split, part in parts.items():
        packed = split_of(store, split)
        assert packed[:, :2].tolist() == [[row["clicked"], row["bought"]] for row in part]
        numbers = [
            [math.nan if row[name] is None else change(row[name]) for name, change in
             (("age", log), ("price", float), ("hour", float))] for row in part
        ]  # fmt: skip
        np.testing.assert_allclose(viewed(packed, layout.numeric_columns, "<f4"), numbers, rtol=1e-6)
        ids = [
            [
                100 + bucket("site", row["site"], 50),
                150 + country_of.get(row["country"], 1),
                bucket("app", row["app"], 100),
            ]
            for row in part
        ]
        assert packed[:, layout.categorical_columns].tolist() == ids
        assert viewed(packed, layout.weight_columns, "<f4")[:, 0].tolist() == [row["importance"] for row in part]
        assert keys_of(packed, layout, texts).tolist() == [row["request"] for row in part]
        if split == "train":
            values = np.array(numbers)
            np.testing.assert_allclose(store.fitted["numeric_mean"], [*np.nanmean(values, axis=0)[:2], 0], rtol=1e-6)
            np.testing.assert_allclose(store.fitted["numeric_std"], [*np.nanstd(values, axis=0)[:2], 1], rtol=1e-6)
    assert report.missing == {n: sum(r[n] is None for r in rows) for n in ("age", "price", "hour", "site", "country", "app")}  # fmt: skip
    assert report.label_rates == pytest.approx({n: np.mean([r[n] for r in rows]) for n in ("clicked", "bought")})


def test_blocks_files_interruptions_and_sorting_in_pieces_change_no_byte(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "CHUNK_ROWS", 64)
    whole = write_csv(tmp_path / "whole.csv", rows)
    expected = prepare(whole, tmp_path / "expected", block_bytes=1 << 20)
    monkeypatch.setattr(fit, "SORTED_BYTES", 5000)
    parts = [write_csv(tmp_path / "part_2.csv.gz", rows[:250]), write_parquet(tmp_path / "part_10.parquet", rows[250:])]
    small = {"block_bytes": 3000, "journal_seconds": 0.0}
    interrupted: list[str] = []
    for polls in (3, 9, 20, 60, 200, 10**6):
        try:
            report = prepare(parts, tmp_path / "store", stop=StopAfter(polls), **small)
            break
        except Interrupted as error:
            interrupted.append(str(error))
    assert len(interrupted) >= 3
    assert all("rows, kept in" in words for words in interrupted)
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")
    assert (report.rows, report.missing, report.label_rates) == (
        expected.rows,
        expected.missing,
        expected.label_rates,
    )
    assert report.fitted_fingerprint == expected.fitted_fingerprint
    assert prepare(parts, tmp_path / "store", **small).reused


def test_bad_rows_are_refused_or_counted_and_located(rows: list[Row], tmp_path: Path) -> None:
    lines = write_csv(tmp_path / "data.csv", rows[:40]).read_text(encoding="utf-8").splitlines()
    cells = {2: (2, "old"), 5: (0, "7"), 9: (8, "-1"), 11: (9, "soon"), 13: (10, ""), 15: (3, "inf")}
    changed = list(lines)
    for line, (place, text) in cells.items():
        parsed = next(csv.reader([changed[line]]))
        parsed[place] = text
        out = io.StringIO()
        csv.writer(out, lineterminator="").writerow(parsed)
        changed[line] = out.getvalue()
    changed[20] += ",1,2"
    changed.insert(30, "")
    (tmp_path / "bad.csv").write_text("\n".join(changed) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad.csv:3: age: 'old', expected a finite number. \d+ of the first"):
        prepare(tmp_path / "bad.csv", tmp_path / "store")
    assert not list(tmp_path.glob("store*"))
    report = prepare(tmp_path / "bad.csv", tmp_path / "store", bad_rows="skip", block_bytes=900)
    assert report.bad_rows == {"numeric": 2, "label": 1, "weight": 1, "time": 1, "key": 1, "columns": 1, "empty": 1}
    assert [place.split(": ")[0].rsplit(":")[-1] for place in report.bad_locations] == ["3", "6", "10", "12", "14", "16", "21", "31"]  # fmt: skip
    assert "clicked: '7', expected 0 or 1" in report.bad_locations[1]
    assert "14 columns instead of 12" in report.bad_locations[6]
    good = [line for number, line in enumerate(lines) if number not in (*cells, 20)]
    (tmp_path / "good.csv").write_text("\n".join(good) + "\n", encoding="utf-8")
    prepare(tmp_path / "good.csv", tmp_path / "clean")
    assert contents(tmp_path / "store") == contents(tmp_path / "clean")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("lable: y\nnumeric: [a]", ["unknown key 'lable'", "Did you mean label?"]),
        ("label: y", ["names no columns to predict from"]),
        ("numeric: [a]", ["lacks label"]),
        ("label: y\nnumeric: {a: logg}", ["numeric.a", "transform=logg", "Did you mean log?"]),
        ("label: y\ncategorical: {a: hashed}", ["encoding=hashed", "Did you mean hash?"]),
        ("label: y\ncategorical: {a: {buckets: 0}}", ["categorical.a", "buckets=0", "from 1"]),
        (
            "label: y\ncategorical: {a: {encoding: vocabulary, buckets: 9}}",
            ["buckets=9", "vocabulary does not read it"],
        ),
        ("label: y\nnumeric: [a]\ncategorical: [a]", ["'a' stands below numeric and below categorical"]),
        ("label: clickd\nnumeric: [age]", ["no column 'clickd'", "below label", "Did you mean clicked?"]),
        ("label: clicked\nnumeric: [agee]", ["no column 'agee'", "Did you mean age?"]),
        ("label: clicked\nnumeric: [a, a]", ["'a' is named twice"]),
        ("label: [", ["schema.yaml", "not YAML"]),
    ],
)
def test_a_wrong_schema_is_said_where_it_is_wrong(schema: str, said: list[str], tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv", make_rows(3))
    with pytest.raises(UserError) as error:
        prepare(path, tmp_path / "store", schema=schema)
    for words in said:
        assert words in str(error.value)
    assert not list(tmp_path.glob("store*"))


def test_like_uses_what_was_fitted_and_rows_may_lack_labels(rows: list[Row], tmp_path: Path) -> None:
    fitted = prepare(write_csv(tmp_path / "data.csv", rows), tmp_path / "store")
    later = [
        dict(row, country="new" if place % 2 else row["country"]) for place, row in enumerate(make_rows(50, seed=7))
    ]
    plain = [
        {name: cell for name, cell in row.items() if name not in ("clicked", "bought", "importance")} for row in later
    ]
    report = prepare(write_parquet(tmp_path / "later.parquet", plain), tmp_path / "later", schema=None, like=tmp_path / "store")  # fmt: skip
    assert (report.rows, report.label_rates) == ({"train": 0, "validation": 50}, None)
    assert report.fitted_fingerprint == fitted.fitted_fingerprint
    store, layout = RowStore.open(tmp_path / "later"), RowLayout.of(RowStore.open(tmp_path / "later").meta)
    packed = split_of(store, "validation")
    values = store.fitted["categorical"][1]["values"]
    expected = [150 + (0 if row["country"] is None else 2 + values.index(row["country"]) if row["country"] in values else 1) for row in later]  # fmt: skip
    assert packed[:, layout.categorical_columns][:, 1].tolist() == expected
    assert (packed[:, :2] == -1).all()
    with pytest.raises(UserError, match="different: numeric"):
        prepare(
            tmp_path / "data.csv",
            tmp_path / "other",
            like=tmp_path / "store",
            schema=SCHEMA.replace("age: log", "age: none"),
        )


def test_a_random_part_and_rows_in_their_own_order(rows: list[Row], tmp_path: Path) -> None:
    schema = "label: clicked\nnumeric: [hour]\ncategorical: {country: vocabulary}\nkey: request\nmin_count: 1"
    path = write_csv(tmp_path / "data.csv", rows)
    prepare(path, tmp_path / "last", schema=schema, validation_fraction=0.1)
    last = RowStore.open(tmp_path / "last")
    keys = keys_of(split_of(last, "validation"), RowLayout.of(last.meta), last.texts())
    assert keys.tolist() == [row["request"] for row in rows[540:]]
    prepare(path, tmp_path / "drawn", schema=schema, split="random", validation_fraction=0.3)
    drawn = RowStore.open(tmp_path / "drawn")
    assert 130 < drawn.num_rows("validation") < 230
    both = [
        keys_of(split_of(drawn, split), RowLayout.of(drawn.meta), drawn.texts()) for split in ("train", "validation")
    ]
    assert sorted(np.concatenate(both)) == sorted(row["request"] for row in rows)
    prepare(write_csv(tmp_path / "two.csv", rows[:2]), tmp_path / "two", schema=schema, split="random", validation_fraction=0.01)  # fmt: skip
    assert RowStore.open(tmp_path / "two").num_rows("validation") == 1


def test_integer_keys_numbers_as_times_and_a_value_over_two_lines(tmp_path: Path) -> None:
    table = pa.table({"y": [True, False, True, False], "x": [1.5, None, math.nan, 2], "id": [2**60, 5, -7, 8], "t": [3, 1, 2, 2.5]})  # fmt: skip
    pq.write_table(table, tmp_path / "data.parquet")
    prepare(tmp_path / "data.parquet", tmp_path / "store", schema="label: y\nnumeric: [x]\nkey: id\ntime: t")
    store = RowStore.open(tmp_path / "store")
    layout = RowLayout.of(store.meta)
    assert keys_of(split_of(store, "train"), layout, None).tolist() == [5, -7, 8]
    assert keys_of(split_of(store, "validation"), layout, None).tolist() == [2**60]
    (tmp_path / "two.csv").write_text('y,c\n1,"a\nb"\n0,c\n')
    with pytest.raises(UserError, match="a quoted value goes on in the next line"):
        prepare(tmp_path / "two.csv", tmp_path / "two", schema="label: y\ncategorical: [c]")


def test_a_model_trains_on_a_table_with_weights_and_is_measured_by_them(rows: list[Row], tmp_path: Path) -> None:
    write_parquet(tmp_path / "data.parquet", rows)
    (tmp_path / "one.yaml").write_text(SCHEMA.replace("[clicked, bought]", "clicked"), encoding="utf-8")
    prepared = odist(
        "prepare", "table", "--input", "data.parquet", "--schema", "one.yaml", "--output", "mine", cwd=tmp_path
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "use it: odist train task=criteo data=prepared data.path=mine" in prepared.stdout
    train = ["train", "task=criteo", "data=prepared", "data.path=mine", "scale=smoke", "run.progress=false"]
    done = odist(*train, "algorithm=codistill", "train.passes=2", "algorithm.burn_in=100", "run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    ordered = sorted(rows, key=lambda row: row["at"])[480:]
    weights = np.array([row["importance"] for row in ordered])
    targets = np.array([row["clicked"] for row in ordered])
    p = run.predictions("validation").probabilities
    metrics = run.results["metrics"]
    assert metrics["log_loss"] == pytest.approx(sk.log_loss(targets, p, sample_weight=weights), rel=1e-6)
    assert metrics["auc"] == pytest.approx(sk.roc_auc_score(targets, p, sample_weight=weights))
    on_the_way = run.metrics(kind="evaluate")
    assert on_the_way["log_loss"].iloc[-1] == pytest.approx(metrics["log_loss"], rel=0.1)
    written = odist("eval", "run", "--output", "p.csv", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    found = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text(encoding="utf-8"))))
    assert [row["request"] for row in found] == [row["request"] for row in ordered]


def test_several_labels_have_a_logit_and_metrics_each(rows: list[Row], tmp_path: Path) -> None:
    write_csv(tmp_path / "data.csv", rows)
    prepare(tmp_path / "data.csv", tmp_path / "mine")
    train = ["train", "task=criteo", "data=prepared", "data.path=mine", "scale=smoke", "run.progress=false"]
    done = odist(*train, "algorithm=codistill", "algorithm.burn_in=100", "run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    ordered = sorted(rows, key=lambda row: row["at"])[480:]
    targets = np.array([[row["clicked"], row["bought"]] for row in ordered])
    weights = np.array([row["importance"] for row in ordered])
    predictions = run.predictions("validation")
    p = predictions.probabilities.reshape(-1, 2)
    assert (predictions.targets.reshape(-1, 2) == targets).all()
    each = [sk.log_loss(targets[:, label], p[:, label], sample_weight=weights) for label in (0, 1)]
    metrics = run.results["metrics"]
    assert (metrics["log_loss_clicked"], metrics["log_loss_bought"]) == pytest.approx(tuple(each), rel=1e-6)
    assert metrics["log_loss"] == pytest.approx(np.mean(each), rel=1e-6)
    on_the_way = run.metrics(kind="evaluate").iloc[-1]
    assert on_the_way["auc_bought"] == pytest.approx(metrics["auc_bought"], abs=0.05)
    refused = odist(*train, "algorithm=label_smoothing", "algorithm.distribution=unigram", cwd=tmp_path)
    assert refused.returncode == 2
    assert "algorithm.distribution=uniform" in refused.stderr
    written = odist("eval", "run", "--output", "p.csv", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    found = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text(encoding="utf-8"))))
    assert [(row["request"], row["label_name"]) for row in found[:3]] == [
        (ordered[0]["request"], "clicked"),
        (ordered[0]["request"], "bought"),
        (ordered[1]["request"], "clicked"),
    ]


def test_whole_weights_are_repeated_rows() -> None:
    draw = np.random.default_rng(0)
    p, y, w = draw.random(200), draw.integers(0, 2, 200), draw.integers(0, 4, 200)
    weighted = binary_results(p, y, weights=w)
    repeated = binary_results(np.repeat(p, w), np.repeat(y, w))
    for name in ("log_loss", "auc", "accuracy", "brier", "calibration_error", "mean_prediction", "base_rate"):
        assert weighted[name] == pytest.approx(repeated[name]), name
    ones, plain = binary_results(p, y, weights=np.ones(200)), binary_results(p, y)
    for name in ("log_loss_interval", "auc_interval"):
        assert ones[name] == pytest.approx(plain[name]), name


def test_a_schema_is_drafted_and_prepares(rows: list[Row], tmp_path: Path) -> None:
    write_csv(tmp_path / "data.csv", rows)
    drafted = odist("prepare", "table", "--input", "data.csv", "--print-schema", cwd=tmp_path)
    assert drafted.returncode == 0
    for line in ("label: clicked", "  bought: log", "  country: hash", "  price: log"):
        assert line in drafted.stdout.splitlines()
    (tmp_path / "schema.yaml").write_text(drafted.stdout, encoding="utf-8")
    report = odist("prepare", "table", "--input", "data.csv", "--schema", "schema.yaml", "--output", "mine", "--json", cwd=tmp_path)  # fmt: skip
    assert json.loads(report.stdout)["rows"] == {"train": 480, "validation": 120}
    assert odist("prepare", "table", "--input", "data.csv", "--output", "x", cwd=tmp_path).returncode == 2
