"""Files of predictions: which rows are the same, which columns are what, and what is refused as other rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss
from test_churn import make_run
from test_cli import odist, refused

from odist.errors import UserError
from odist.measure.churn import churn
from odist.measure.predictions import compare_retrains

ROWS, CLASSES = 400, 6


def binary(count: int, *, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, 1.5, ROWS)
    targets = (generator.random(ROWS) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    return [1 / (1 + np.exp(-logits - generator.normal(0, 0.3, ROWS))) for _ in range(count)], targets


def multiclass(count: int, classes: int = CLASSES) -> tuple[list[np.ndarray], np.ndarray]:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(ROWS, classes))
    raw = [np.exp(logits + generator.normal(0, 0.3, logits.shape)) for _ in range(count)]
    return [p / p.sum(axis=1, keepdims=True) for p in raw], logits.argmax(axis=1)


def write(path: Path, rows: Sequence[int] | np.ndarray | None = None, **columns: Any) -> Path:
    frame = pd.DataFrame(columns)
    frame = frame if rows is None else frame.iloc[rows]
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
    return path


def distance(paths: Sequence[Path], **options: Any) -> float:
    return float(compare_retrains(paths, slices=[], **options).metrics["mean_abs_difference"])


SHUFFLED = np.random.default_rng(7).permutation(ROWS)


# Which rows are the same


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_matched_by_their_number_without_being_asked(tmp_path: Path, suffix: str) -> None:
    (a, b), _ = binary(2)
    first = write(tmp_path / f"a.{suffix}", SHUFFLED[::-1], row=np.arange(ROWS), prediction=a)
    second = write(tmp_path / f"b.{suffix}", SHUFFLED, row=np.arange(ROWS), prediction=b)
    assert distance([first, second]) == pytest.approx(np.abs(a - b).mean(), rel=1e-12)
    found = compare_retrains([first, second], slices=["position"])
    tenth = np.abs(a - b)[: ROWS // 10].mean()  # of the rows by number, not of a shuffled file
    assert found.slices["position"][0]["mean_abs_difference"] == pytest.approx(tenth)


def test_other_rows_are_refused_with_how_many_and_which_first(tmp_path: Path) -> None:
    (a, b), _ = binary(2)
    rows = np.arange(ROWS)
    first = write(tmp_path / "a.csv", row=rows, prediction=a)
    shifted = write(tmp_path / "b.csv", row=rows + 5, prediction=b)
    refused(odist("churn", "a.csv", "b.csv", cwd=tmp_path), "5 rows only in a.csv (first: row 0)",
            "5 rows only in b.csv (first: row 400)")  # fmt: skip
    with pytest.raises(UserError, match=r"1 row only in .*a.csv \(first: row 7\)"):
        distance([first, write(tmp_path / "short.csv", rows[rows != 7], row=rows, prediction=b)])
    with pytest.raises(
        UserError,
        match=r"short.csv: .*'row' does not name each row once: 2 rows with that of an earlier row, first row 3 \(0\)",
    ):
        distance([first, write(tmp_path / "short.csv", row=[0, 1, 2, 0, 1], prediction=b[:5])])
    with pytest.raises(UserError, match="1 row without one, first row 1"):
        distance([first, write(tmp_path / "short.csv", row=[0, None, 2], prediction=b[:3])])
    assert distance([first, shifted], by_order=True) == pytest.approx(np.abs(a - b).mean())


def test_an_identifier_in_another_order_or_of_other_rows_is_refused(tmp_path: Path) -> None:
    (a, b), _ = binary(2)
    names = np.array([f"u{n:03}" for n in range(ROWS)])
    first = write(tmp_path / "a.csv", impression_id=names, pctr=a)
    write(tmp_path / "b.csv", SHUFFLED, impression_id=names, pctr=b)
    write(tmp_path / "c.csv", impression_id=np.char.add("v", names), pctr=b)
    for other in ("b.csv", "c.csv"):
        refused(odist("churn", "a.csv", other, "--column", "pctr", cwd=tmp_path), "'impression_id'", "of 400 rows",
                "--key impression_id", "--no-key")  # fmt: skip
    matched = distance([first, tmp_path / "b.csv"], column=["pctr"], key="impression_id")
    assert matched == pytest.approx(np.abs(a - b).mean())
    with pytest.raises(UserError, match=r"400 rows only in .*a.csv \(first: impression_id u000\)"):
        distance([first, tmp_path / "c.csv"], column=["pctr"], key="impression_id")
    refused(
        odist("churn", "a.csv", "b.csv", "--column", "pctr", "--key", "row", "--no-key", cwd=tmp_path),
        "exclude each other",
    )


@pytest.mark.parametrize("values", [np.arange(ROWS), np.linspace(0, 1, ROWS), np.arange(ROWS).astype(str)])
def test_a_column_that_is_not_called_an_identifier_shows_a_shuffle_too(tmp_path: Path, values: np.ndarray) -> None:
    (a, b), _ = binary(2)
    paths = [write(tmp_path / "a.parquet", what=values, p=a), write(tmp_path / "b.parquet", SHUFFLED, what=values, p=b)]
    with pytest.raises(UserError, match=r"disagree in the column 'what'.*--key what"):
        distance(paths)
    assert distance(paths, key="what") == pytest.approx(np.abs(a - b).mean())


def test_columns_that_may_differ_between_retrains_are_no_reason_to_refuse(tmp_path: Path) -> None:
    (a, b), _ = binary(2)
    paths = [
        write(tmp_path / f"{i}.parquet", p=p, margin=np.log(p / (1 - p)), decision=np.where(p > 0.5, "yes", "no"))
        for i, p in enumerate((a, b))
    ]
    result = compare_retrains(paths, slices=[])
    assert result.metrics["mean_abs_difference"] == pytest.approx(np.abs(a - b).mean())
    order, decision = [note for note in result.notes if "third seed" not in note]
    assert "matched by their order" in order
    assert "disagree in decision: are these the same rows?" in decision


def test_row_numbers_in_one_file_alone_must_agree_with_the_order(tmp_path: Path) -> None:
    (a, b), _ = binary(2)
    plain = write(tmp_path / "plain.csv", p=a)
    assert distance([plain, write(tmp_path / "b.csv", row=np.arange(ROWS), p=b)]) > 0
    with pytest.raises(UserError, match=r"b.csv numbers its rows .* another order .*plain.csv has no such column"):
        distance([plain, write(tmp_path / "b.csv", SHUFFLED, row=np.arange(ROWS), p=b)])


def test_numbers_as_words_are_the_same_keys(tmp_path: Path) -> None:
    (a, b), _ = binary(2)
    first = write(tmp_path / "a.parquet", key=np.arange(ROWS), p=a)
    second = write(tmp_path / "b.parquet", SHUFFLED, key=np.arange(ROWS).astype(str), p=b)
    assert distance([first, second], key="key") == pytest.approx(np.abs(a - b).mean())


def test_files_of_other_data_are_refused_although_their_rows_have_equal_numbers(tmp_path: Path) -> None:
    (a, b), targets = binary(2)
    make_run(tmp_path / "run", a, targets, seed=1, fingerprint="f00d" * 16)
    files = [
        write(
            tmp_path / f"{name}.csv",
            row=np.arange(ROWS),
            data_fingerprint=f"validation-{name * 3}",
            p=b,
        )
        for name in ("f00d", "beef")
    ]
    assert distance([tmp_path / "run", files[0]]) == pytest.approx(np.abs(a - b).mean())
    for other in (files[0], tmp_path / "run"):
        with pytest.raises(UserError, match=r"predict different rows .*validation-beefbeefbeef"):
            distance([other, files[1]])


def test_a_run_folder_has_no_other_key_than_the_number_of_its_rows(tmp_path: Path) -> None:
    (a, b), targets = binary(2)
    make_run(tmp_path / "run", a, targets, seed=1)
    shuffled = write(tmp_path / "b.csv", SHUFFLED, row=np.arange(ROWS), id=np.arange(ROWS), label=targets, p=b)
    assert distance([tmp_path / "run", shuffled]) == pytest.approx(np.abs(a - b).mean())
    with pytest.raises(UserError, match="known by their number alone: `odist eval RUN --output FILE`"):
        distance([tmp_path / "run", shuffled], key="id")


# Which columns are what


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        ([f"prediction_{c}" for c in range(CLASSES)], {}),
        ([f"p{c}" for c in range(CLASSES)], {}),
        ([f"out.{c}" for c in range(CLASSES)], {"column": ["out."]}),
        (["cat", "dog", "hen", "owl", "yak", "zho"], {"column": ["cat", "dog", "hen", "owl", "yak", "zho"]}),
    ],
)
def test_classes_are_read_by_their_usual_names_a_prefix_or_a_list(
    tmp_path: Path, suffix: str, names: list[str], options: dict[str, Any]
) -> None:
    predictions, targets = multiclass(3)
    labels = targets if "cat" not in names else np.array(names)[targets]
    backwards = list(reversed(range(CLASSES)))  # columns stand in any order
    paths = [
        write(tmp_path / f"{i}.{suffix}", label=labels, **{names[c]: p[:, c] for c in backwards})
        for i, p in enumerate(predictions)
    ]
    result = compare_retrains(paths, slices=["label"], **options)
    expected = churn(predictions, targets=targets)
    for name, value in expected.metrics.items():
        assert result.metrics[name] == (None if value is None else pytest.approx(value, rel=1e-9)), name
    pairs = list(combinations(predictions, 2))
    total_variation = np.mean([0.5 * np.abs(a - b).sum(axis=1).mean() for a, b in pairs])
    assert result.metrics["mean_abs_difference"] == pytest.approx(total_variation)
    assert result.metrics["flips"] == pytest.approx(np.mean([(a.argmax(1) != b.argmax(1)).mean() for a, b in pairs]))
    assert result.metrics["cross_entropy"] == pytest.approx(np.mean([log_loss(targets, p) for p in predictions]))


def test_no_message_lists_a_thousand_columns(tmp_path: Path) -> None:
    columns = {f"logit_{c}": np.zeros(3) for c in range(1000)}
    write(tmp_path / "a.parquet", row=[0, 1, 2], label=[0, 1, 2], **columns)
    write(tmp_path / "b.parquet", row=[0, 1, 2], label=[0, 1, 2], **columns)
    for options, said in (([], "It has: row, label, logit_0 ... logit_999."), (["--column", "logit"], "do not add up to 1"),
                          (["--column", "pred"], "logit_0 ... logit_999"), (["--target", "t", "--column", "logit"], "'t'"),
                          (["--column", "logit_0", "--target", "logit_1", "--slice", "x"], "logit_2 ... logit_999")):  # fmt: skip
        done = odist("churn", "a.parquet", "b.parquet", *options, cwd=tmp_path)
        refused(done, said)
        assert len(done.stderr) < 600


def test_wrong_classes_are_refused(tmp_path: Path) -> None:
    (p, q), targets = multiclass(2)
    good = write(tmp_path / "good.csv", label=targets, **{f"p_{c}": p[:, c] for c in range(CLASSES)})
    other = {f"p_{c}": q[:, c] for c in range(CLASSES)}
    gap = {f"p_{c + 1}": q[:, c] for c in range(CLASSES)}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (
            other | {"label": targets + 1},
            {},
            r"other than the numbers of classes, from 0 to 5 in \d+ rows, first in row \d+ \(6\)",
        ),
        (other | {"p_0": q[:, 0] + 0.5}, {}, r"classes of 400 rows do not add up to 1, first of row 0 \(sum 1.5\)"),
        (gap | {"label": targets}, {"column": ["p"]}, "none for class 0: classes are counted from 0"),
        ({"label": targets % 2, "p": q[:, 0]}, {}, "holds the probability of the positive class, .* every class"),
        (
            other | {"label": targets.astype(str)} | {"p_0": "x"},
            {},
            r"\(p_0 ... p_5\) hold something other than numbers",
        ),
    ]
    for columns, options, message in cases:
        with pytest.raises(UserError, match=message):
            distance([good, write(tmp_path / "bad.csv", **columns)], **options)
    with pytest.raises(UserError, match=r"no column 'z' \(--column\)"):
        distance([good, good.with_name("bad.csv")], column=["p_0", "z"])


def test_labels_of_many_classes_beside_one_probability_are_refused_with_a_way_out(tmp_path: Path) -> None:
    (a, b), _ = binary(2)
    labels = np.arange(ROWS) % 7
    for column, said in (("p", "probability_of_label"), ("probability_of_label", "")):
        paths = [write(tmp_path / f"{i}.csv", label=labels, **{column: p}) for i, p in enumerate((a, b))]
        if said:
            with pytest.raises(UserError, match=said):
                distance(paths)
            continue
        result = compare_retrains(paths, slices=[]).metrics
        assert result["flips"] is None
        assert result["cross_entropy"] == pytest.approx(-(np.log(a).mean() + np.log(b).mean()) / 2)


def test_each_kind_of_prediction_says_what_its_distance_and_its_flips_are(tmp_path: Path) -> None:
    (a, b), targets = binary(2)
    (c, d), classes = multiclass(2)
    pairs = {"clicks": (a, b, targets), "images": (c, d, classes), "text": (a, b, classes)}
    expected = {
        "clicks": ("mean_abs_difference", "positive class", "flips: share of rows with one of p1 and p2 above 0.5"),
        "images": (
            "mean_total_variation",
            "half the sum over classes",
            "flips: share of rows whose most probable class",
        ),
        "text": ("mean_abs_difference_of_label", "probability of the correct class", "flips: not known"),
    }
    for name, (first, second, labels) in pairs.items():
        make_run(tmp_path / f"{name}1", first, labels, seed=1)
        make_run(tmp_path / f"{name}2", second, labels, seed=2)
        printed = odist("churn", f"{name}1", f"{name}2", "--slice", "position", cwd=tmp_path).stdout
        distance_name, of_what, flips = expected[name]
        assert f"{distance_name}: mean over rows" in printed
        assert of_what in printed
        assert flips in printed
        table = [line.split()[0] for line in printed.splitlines() if line.startswith(" ") and line.strip()]
        assert ("flips" in table) is (name != "text")
        assert distance_name in table
        assert ("calibration_error" in printed) is (name != "text")  # no column without a number
        keys = json.loads(odist("churn", f"{name}1", f"{name}2", "--json", cwd=tmp_path).stdout)
        assert {"mean_abs_difference", "root_mean_square", "flips", "definitions", "compared"} <= set(keys)
        assert ("log_loss" in keys, "cross_entropy" in keys) == (name == "clicks", name != "clicks")
    assert "above 0.3 and" in odist("churn", "clicks1", "clicks2", "--threshold", "0.3", cwd=tmp_path).stdout
    assert "threshold is not used" in odist("churn", "text1", "text2", "--threshold", "0.3", cwd=tmp_path).stdout
