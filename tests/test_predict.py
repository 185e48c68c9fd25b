"""`odist predict`: raw rows, images and text give what an evaluation of the prepared ones gives."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from conftest import odist
from PIL import Image

from odist.deploy import raw_clicks, raw_text
from odist.measure import prediction_writer
from odist.prepare.criteo.options import CriteoOptions
from odist.run.folder import FITTED, Run

SMALL = ("train.passes=1", "train.evaluate_every=0", "train.checkpoint_every=0")


def rows(count: int, *, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        numbers = [str(n) if n < 50 else "" for n in draw.integers(-2, 60, 13)]
        words = [f"{n:08x}" if n < 30 else "" for n in draw.integers(0, 33, 26)]
        lines.append("\t".join([str(draw.integers(0, 2)), *numbers, *words]))
    return lines


def typed(*arguments: str | Path, cwd: Path) -> str:
    done = odist(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_small_pieces(patch: pytest.MonkeyPatch, *arguments: str | Path, cwd: Path) -> pd.DataFrame:
    """What `odist predict ... --output` writes where it reads, keeps and writes a few rows at once."""
    patch.setattr(raw_clicks, "CriteoOptions", partial(CriteoOptions, block_bytes=4096))
    patch.setattr(raw_text, "WRITTEN", 7)
    patch.setattr(prediction_writer, "ROWS_AT_ONCE", 32)
    typed("predict", *arguments, "--output", "pieces.parquet", cwd=cwd)
    assert pyarrow.parquet.ParquetFile(cwd / "pieces.parquet").num_row_groups > 1
    return pd.read_parquet(cwd / "pieces.parquet")


def test_clicks_of_packed_rows_with_bad_ones_among_them(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.tsv").write_text("\n".join(rows(400, seed=1)) + "\n")
    typed(
        "prepare",
        "criteo",
        "--input",
        "old.tsv",
        "--output",
        "old",
        "--buckets",
        "500",
        "--min-count",
        "3",
        cwd=tmp_path,
    )
    run = train("data=prepared", f"data.path={tmp_path / 'old'}", "model.hidden=[8]", "train.batch=20",
                "train.evaluate_batch=64", "algorithm=ensemble", "num_groups=2", *SMALL)  # fmt: skip
    later = rows(200, seed=2)
    (tmp_path / "later.tsv").write_text("\n".join(later) + "\n")
    typed("prepare", "criteo", "--input", "later.tsv", "--output", "later", "--like", "old", cwd=tmp_path)
    typed("eval", run.path, "--data", "later", "--output", "expected.parquet", cwd=tmp_path)
    with gzip.open(tmp_path / "dirty.tsv.gz", "wt") as file:
        file.write("\n".join([*later[:50], "1\tbroken", *later[50:120], "7" + later[0][1:], *later[120:]]) + "\n")
    for path in (tmp_path / "old").iterdir():
        path.unlink()  # the run has kept what it needs
    (tmp_path / "old").rmdir()
    report = json.loads(
        typed("predict", run.path, "--input", "dirty.tsv.gz", "--output", "found.parquet", "--json", cwd=tmp_path)
    )
    assert (report["rows"], report["bad_rows"]) == (200, {"columns": 1, "label": 1})
    assert [place.split(": ")[0].rpartition(":")[2] for place in report["bad_located"]] == ["51", "122"]
    found, expected = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("found", "expected"))
    for name in ("row", "label", "prediction"):
        np.testing.assert_array_equal(found[name], expected[name])
    pieces = in_small_pieces(monkeypatch, run.path, "--input", "dirty.tsv.gz", cwd=tmp_path)
    pd.testing.assert_frame_equal(pieces, found)
    assert found["line"].tolist() == [line for line in range(1, 203) if line not in (51, 122)]
    refused = odist(
        "predict", run.path, "--input", "dirty.tsv.gz", "--output", "none.csv", "--bad-rows", "refuse", cwd=tmp_path
    )
    assert refused.returncode == 2
    assert "dirty.tsv.gz:51: 2 columns instead of 40" in refused.stderr
    assert not (tmp_path / "none.csv").exists()
    single = typed("predict", run.path, "--input", "later.tsv", "--output", "one.csv", "--member", "1", cwd=tmp_path)
    assert "200 rows predicted by member 1" in single
    assert np.abs(pd.read_csv(tmp_path / "one.csv")["prediction"] - expected["prediction"]).max() > 0


@pytest.mark.parametrize("labels", ["bought", "[bought, returned]"], ids=["label", "labels"])
def test_rows_of_a_table_with_a_key(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    draw = np.random.default_rng(0)
    made = {
        "bought": draw.integers(0, 2, 300),
        "returned": draw.integers(0, 2, 300),
        "price": draw.exponential(3, 300),
        "shop": draw.choice(["a", "b", "c"], 300),
    }
    frame = pd.DataFrame({**made, "order": [f"o{n}" for n in range(300)]})
    frame[:200].to_parquet(tmp_path / "first.parquet")
    frame[200:].drop(columns=["bought", "returned"]).to_parquet(tmp_path / "later.parquet")
    frame[200:].to_parquet(tmp_path / "labelled.parquet")
    (tmp_path / "schema.yaml").write_text(
        f"label: {labels}\nkey: order\nnumeric: {{price: {{}}}}\ncategorical: {{shop: {{encoding: vocabulary}}}}\n"
    )
    typed("prepare", "table", "--input", "first.parquet", "--schema", "schema.yaml", "--output", "store", cwd=tmp_path)
    run = train("data=prepared", f"data.path={tmp_path / 'store'}", "model.hidden=[8]", "train.batch=20",
                "train.evaluate_batch=16", "algorithm=ensemble", "num_groups=2", *SMALL)  # fmt: skip
    typed("prepare", "table", "--input", "labelled.parquet", "--output", "later", "--like", "store", cwd=tmp_path)
    typed("eval", run.path, "--data", "later", "--output", "expected.parquet", cwd=tmp_path)
    typed("predict", run.path, "--input", "later.parquet", "--output", "found.parquet", cwd=tmp_path)
    found, expected = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("found", "expected"))
    for name in ("row", "order", "prediction", *(["label_name"] if "," in labels else [])):
        np.testing.assert_array_equal(found[name], expected[name])
    assert "label" not in found
    frame[200:].to_csv(tmp_path / "labelled.csv", index=False)
    pieces = in_small_pieces(monkeypatch, run.path, "--input", "labelled.csv", cwd=tmp_path)
    pd.testing.assert_frame_equal(pieces[list(found)], found)
    np.testing.assert_array_equal(pieces["label"], expected["label"])


@pytest.mark.parametrize("decode", [(), ("--decode", "8")], ids=["jpeg", "decoded"])
def test_images_of_a_folder_without_classes(train: Callable[..., Run], tmp_path: Path, decode: tuple[str, ...]) -> None:
    draw = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "images" / ("train" if number < 16 else "val") / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(draw.integers(0, 255, (12, 14, 3), dtype=np.uint8))
        picture.save(folder / f"{number}.png")
    typed("prepare", "imagenet", "--input", "images", "--output", "store", *decode, cwd=tmp_path)
    run = train(
        "task=imagenet", "data=prepared", f"data.path={tmp_path / 'store'}", "task.size=8", "train.batch=8", *SMALL
    )
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((tmp_path / "images" / "val").rglob("*.png")):
        (flat / path.name).write_bytes(path.read_bytes())
    (flat / "broken.png").write_bytes(b"\x89PNG nothing")
    (flat / "README").write_text("no image")
    report = json.loads(typed("predict", run.path, "--input", "flat", "--output", "p.parquet", "--json", cwd=tmp_path))
    assert (report["rows"], sum(report["bad_rows"].values())) == (8, 1)
    found = pd.read_parquet(tmp_path / "p.parquet")
    assert sorted(found["file"]) == sorted(path.name for path in flat.glob("[0-9]*.png"))
    names = ["prediction_0", "prediction_1"]
    expected = run.predictions().probabilities  # in another order
    np.testing.assert_allclose(np.sort(found[names].to_numpy(), axis=0), np.sort(expected, axis=0), atol=1e-6)


def test_text_token_by_token(train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefgh"), 4)) for _ in range(60)]
    lines = [" ".join(draw.choice(words, 12)).capitalize() + "." for _ in range(400)]
    (tmp_path / "book.txt").write_text("\n\n".join(lines))
    new = "\n\n".join(" ".join(draw.choice(words, 12)).capitalize() + "." for _ in range(40))
    (tmp_path / "new.txt").write_text(new)
    how = ("--language", "any", "--duplicates", "keep", "--long-paragraph-words", "0")
    typed("prepare", "text", "--input", "book.txt", "--output", "store", "--vocabulary", "60", "--passage-words", "60",
          *how, cwd=tmp_path)  # fmt: skip
    run = train("task=lm", "data=prepared", f"data.path={tmp_path / 'store'}", "task.unroll=8", "train.batch=4",
                "model.embedding_dim=8", "model.hidden=[8]", "train.evaluate_batch=4", *SMALL)  # fmt: skip
    assert (run.path / FITTED / "tokenizer.model").is_file()
    typed("prepare", "text", "--input", "new.txt", "--output", "later", "--like", "store", "--passage-words", "2000",
          "--boilerplate", "off", *how, cwd=tmp_path)  # fmt: skip
    typed("eval", run.path, "--data", "later", "--output", "expected.parquet", cwd=tmp_path)
    typed("predict", run.path, "--input", "new.txt", "--output", "found.parquet", cwd=tmp_path)
    found, expected = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("found", "expected"))
    assert sorted(found["probability_of_label"]) == sorted(expected["probability_of_label"])
    assert (found["position"].diff().dropna() <= 1).all()
    assert found["label"].between(0, 59).all()
    pd.testing.assert_frame_equal(in_small_pieces(monkeypatch, run.path, "--input", "new.txt", cwd=tmp_path), found)


def test_what_has_no_raw_rows_is_refused(train: Callable[..., Run], tmp_path: Path) -> None:
    run = train("task.synthetic.rows=200", "task.synthetic.validation_rows=100", "model.hidden=[4]", *SMALL)
    (tmp_path / "x.tsv").write_text("\n".join(rows(3, seed=1)))
    for arguments, words in (
        (("--output", "p.parquet"), "has learnt from synthetic data"),
        (("--output", "p.txt"), "expected a name that ends in .csv or .parquet"),
    ):
        done = odist("predict", run.path, "--input", "x.tsv", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
