"""The release gate on streams of rows: in any pieces, sorted or not, from a store and from memory, the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import odist
from odist.errors import UserError
from odist.measure import pairing, prediction_tables
from odist.measure.gate import GateResult, Limit
from odist.measure.release import compare_release

ROWS = 3000
SLICES = ["decile", "country", "amount", "position", "label"]


def made() -> pd.DataFrame:
    draw = np.random.default_rng(3)
    logit = draw.normal(-1, 1.2, ROWS)
    frame = pd.DataFrame(
        {
            "id": draw.permutation(10 * ROWS)[:ROWS],
            "target": (draw.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int),
            "country": np.where(draw.random(ROWS) < 0.3, "de", "fr"),
            "amount": draw.exponential(10, ROWS),
            "user": np.arange(ROWS) // 8,
            "weight": draw.integers(1, 4, ROWS),
        }
    )
    for name in ("old", "new"):
        frame[name] = 1 / (1 + np.exp(-logit - draw.normal(0, 0.2, ROWS)))
    return frame


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return made()


@pytest.fixture(scope="module")
def files(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of two systems, in the order of `id` and in other orders; row groups are small."""
    folder = tmp_path_factory.mktemp("predictions")
    ordered = frame.sort_values("id")
    for name in ("old", "new"):
        own = ordered.drop(columns=["old", "new"]).assign(probability=ordered[name])
        own.to_parquet(folder / f"{name}.parquet", row_group_size=250, index=False)
        own.sample(frac=1, random_state=len(name)).to_parquet(
            folder / f"{name}-shuffled.parquet", row_group_size=400, index=False
        )
        own.to_csv(folder / f"{name}.csv", index=False)
    return folder


def equal(one: GateResult, other: GateResult) -> None:
    """The same measures, intervals and slices, up to the order in which rows are summed."""
    assert one.rows == other.rows
    pairs = [(one.measures, other.measures)]
    assert one.slices.keys() == other.slices.keys()
    for name, within in one.slices.items():
        assert [(own.value, own.rows) for own in within] == [(own.value, own.rows) for own in other.slices[name]]
        pairs += [(a.measures, b.measures) for a, b in zip(within, other.slices[name], strict=True)]
    for first, second in pairs:
        assert first.keys() == second.keys()
        for measure, (value, interval) in first.items():
            assert [value, *interval] == pytest.approx([second[measure][0], *second[measure][1]], rel=1e-9, abs=1e-15)


def test_pieces_of_any_size_and_partitions_give_the_numbers_of_the_whole(
    files: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"key": "id", "slices": SLICES, "cluster": "user", "weight": "weight"}
    whole = compare_release(files / "old.parquet", files / "new.parquet", **how)
    longest = []
    parse = pairing.predictions_in
    monkeypatch.setattr(
        pairing, "predictions_in", lambda rows, *a, **k: longest.append(len(rows)) or parse(rows, *a, **k)
    )
    streamed = compare_release(files / "old.parquet", files / "new.parquet", batch_rows=70, **how)
    equal(whole, streamed)
    assert max(longest) <= 70
    equal(whole, compare_release(files / "old.csv", files / "new.parquet", batch_rows=999, **how))
    monkeypatch.setattr(prediction_tables, "BATCH_ROWS", 250)
    longest.clear()
    equal(whole, compare_release(files / "old.csv", files / "new.csv", batch_rows=70, **how))
    assert max(longest) <= 70
    # Unsorted: cut by a hash of the key into parts on the disk, which are joined one by one.
    how["slices"] = [name for name in SLICES if name != "position"]
    sorted_rows = compare_release(files / "old.parquet", files / "new.parquet", **how)
    longest.clear()
    joined = compare_release(files / "old-shuffled.parquet", files / "new.parquet", batch_rows=70, part_rows=500, **how)
    equal(sorted_rows, joined)
    assert max(longest) <= 70
    equal(sorted_rows, compare_release(files / "old-shuffled.parquet", files / "new-shuffled.parquet", **how))


def test_a_column_of_a_csv_file_has_one_type_in_all_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_tables, "BATCH_ROWS", 2)
    columns = {
        "p": [0, 1, 0, 1, 0.5, 0.25],
        "word": [1, 2, 3, "four", 5, 6],
        "gap": [1, 2, 3, 4, None, 6],
        "huge": [*range(5), 2**64 - 1],
        "flag": [True, False] * 3,
    }
    pd.DataFrame(columns).to_csv(tmp_path / "p.csv", index=False)
    table = prediction_tables.open_table(tmp_path / "p.csv", name="p")
    assert (table.columns, table.num_rows) == (list(columns), 6)
    names = ["flag", "gap", "word", "p"]
    found = pd.concat(table.pieces(names, rows=2), ignore_index=True)
    pd.testing.assert_frame_equal(found, pd.read_csv(tmp_path / "p.csv")[names])
    assert next(table.pieces(["huge"], rows=2))["huge"].tolist() == ["0", "1"]  # no float has all digits of a key
    (tmp_path / "torn.csv").write_text('p,key\n0.5,1\n0.5,"2')
    with pytest.raises(UserError, match=r"torn.csv: cannot be read as a table of predictions"):
        prediction_tables.open_table(tmp_path / "torn.csv", name="p")


def test_the_function_gives_the_same_numbers_for_files_tables_and_arrays(files: Path, frame: pd.DataFrame) -> None:
    limits = {"flips": 0.5, "mean_shift": 0.001}
    of_files = odist.churn(files / "old.parquet", files / "new.parquet", max=limits, key="id", slices=["country"])
    ordered = frame.sort_values("id", ignore_index=True)
    tables = [ordered.drop(columns=["old", "new"]).assign(p=ordered[name]) for name in ("old", "new")]
    of_tables = odist.churn(*tables, max=limits, key="id", column=["p"], slices=["country"])
    equal(of_files, of_tables)
    of_arrays = odist.churn(
        ordered["old"].to_numpy(),
        ordered["new"].to_numpy(),
        max=limits,
        target=ordered["target"].to_numpy(),
        key=ordered["id"].to_numpy(),
        slices={"country": ordered["country"].to_numpy()},
    )
    equal(of_files, of_arrays)
    shift = (frame["new"] - frame["old"]).mean()
    assert of_arrays.measures["mean_shift"][0] == pytest.approx(shift)
    assert [check.exceeded for check in of_arrays.checks if check.where == "all rows"] == [False, abs(shift) > 0.001]


def test_labels_tell_flips_to_the_worse_from_flips_to_the_better() -> None:
    draw = np.random.default_rng(7)
    old, new = (draw.dirichlet(np.ones(3), 800) for _ in range(2))
    y = draw.integers(0, 3, 800)
    found = odist.churn(old, new, target=y).measures
    before, after = old.argmax(1) == y, new.argmax(1) == y
    assert found["negative_flips"][0] == pytest.approx((before & ~after).mean())
    assert found["positive_flips"][0] == pytest.approx((after & ~before).mean())
    shift = abs(new.max(1).mean() - after.mean()) - abs(old.max(1).mean() - before.mean())
    assert found["calibration_shift"][0] == pytest.approx(shift)
    assert "mean_shift" not in found


def test_rows_that_do_not_match_are_named_in_every_way_of_reading(files: Path, frame: pd.DataFrame) -> None:
    old = pd.read_parquet(files / "old-shuffled.parquet")
    new = pd.read_parquet(files / "new.parquet")
    for rows in (100, 10_000):
        with pytest.raises(UserError, match=r"1 row only in old .* and 1 row only in new"):
            compare_release(old[1:], new.drop(index=new.index[new["id"] == old["id"][5]][0]), key="id", part_rows=rows)
        with pytest.raises(UserError, match=r"'id' does not name each row once: 1 row with that of an earlier row"):
            compare_release(pd.concat([old, old[:1]]), new, key="id", part_rows=rows)
    with pytest.raises(UserError, match="disagree in the column 'id'"):  # by order: rows that name themselves
        compare_release(old, new, batch_rows=50)
    with pytest.raises(UserError, match="disagree on the label"):
        compare_release(old, new.assign(target=1 - new["target"]), key="id", batch_rows=50)
    with pytest.raises(UserError, match="not a probability in 1 places"):
        compare_release(old.assign(probability=old["probability"].where(old.index != 3, 2.0)), new, key="id")
    with pytest.raises(UserError, match="no slice 'team'"):
        compare_release(old, new, key="id", slices=["team"])
    with pytest.raises(UserError, match=r"--max loss_increase: not known"):
        compare_release(np.array([0.5]), np.array([0.4]), limits=[Limit("loss_increase", 1)])


def test_the_example_pipeline_stops_a_model_that_churns(files: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "examples" / "release_gate.sh"
    moved = frame.drop(columns=["old", "new"]).assign(probability=frame["old"] ** 0.5)
    moved.to_parquet(tmp_path / "moved.parquet")
    same = frame.drop(columns=["old", "new"]).assign(probability=frame["old"])
    same.to_parquet(tmp_path / "released.parquet")
    slightly = frame["old"] + 0.001 * np.sin(np.arange(ROWS))
    same.assign(probability=slightly.clip(0, 1)).to_parquet(tmp_path / "retrain.parquet")
    (tmp_path / "odist").write_text(f'#!/bin/sh\nexec {sys.executable} -m odist "$@"\n')
    (tmp_path / "odist").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(script.parent.parent)}
    for candidate, code, words in (
        ("moved", 5, "hold back: moved.parquet"),
        ("retrain", 0, "release: retrain.parquet"),
    ):
        done = subprocess.run(
            ["bash", script, "released.parquet", f"{candidate}.parquet"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert words in done.stdout
        assert (tmp_path / "gate.xml").is_file()
