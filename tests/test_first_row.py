"""Training on later rows alone (`data.first_row`): exactly those are read, of every kind of data, and evaluated is what was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_config, odist
from token_stores import write_token_store

from odist.bench.criteo import write_store
from odist.config.identity import config_hash
from odist.engine.problem import build_task
from odist.errors import UserError
from odist.tasks.base import Task

FIRST, ROWS = 700, 400


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "store"
    write_store(path, rows=2_000, buckets=2_600)
    return path


def only_later_rows(store: Path, target: Path) -> Path:
    """The store as if nothing but the later rows had been prepared for training, with the same fitted parts."""
    shutil.copytree(store, target)
    meta = json.loads((target / "store.json").read_text())
    start = meta["splits"]["train"]["start"] + FIRST
    meta["splits"]["train"] |= {"start": start, "stop": start + ROWS}
    (target / "store.json").write_text(json.dumps(meta))
    return target


def task_of(*overrides: object) -> Task:
    return build_task(make_config("task=criteo", *map(str, overrides)))


def read_ids(task: Task, *, group: int = 0, num_groups: int = 1, per_step: int = 50, rows: int = ROWS) -> np.ndarray:
    order = task.order(group=group, num_groups=num_groups, examples_per_step=per_step, seed=3)
    return np.concatenate([order.ids(step) for step in range(rows // per_step)])


def test_a_window_is_read_as_if_its_rows_alone_had_been_prepared(store: Path, tmp_path: Path) -> None:
    window = task_of("data=prepared", f"data.path={store}", f"data.first_row={FIRST}", f"data.max_rows={ROWS}")
    alone = task_of("data=prepared", f"data.path={only_later_rows(store, tmp_path / 'later')}", "data.max_rows=null")
    assert window.num_rows("train") == alone.num_rows("train") == ROWS
    ids = read_ids(window)
    assert sorted(ids) == list(range(FIRST, FIRST + ROWS))
    assert np.array_equal(ids - FIRST, read_ids(alone))
    ours, theirs = window.batch(ids, "train"), alone.batch(ids - FIRST, "train")
    assert all(torch.equal(a, b) for a, b in zip(ours.inputs, theirs.inputs, strict=True))
    assert torch.equal(ours.targets, theirs.targets)
    assert window.prior() == alone.prior()
    for split, begin in (("train", FIRST), ("validation", 0)):
        assert window.evaluation_order(split, rows=30, batch_size=30).ids(0).tolist() == [*range(begin, begin + 30)]


@pytest.mark.parametrize("data", ["synthetic", "prepared"])
def test_what_is_evaluated_is_the_same_and_groups_share_a_window(data: str, store: Path) -> None:
    place = [f"data.path={store}"] if data == "prepared" else []
    chosen = [f"data={data}", *place, f"data.max_rows={ROWS}", "num_groups=2"]
    usual, later = task_of(*chosen), task_of(*chosen, f"data.first_row={FIRST}")
    assert (later.fingerprint, later.fitted_fingerprint) == (usual.fingerprint, usual.fitted_fingerprint)
    rows = later.evaluation_order("validation", rows=None, batch_size=100).ids(0)
    assert torch.equal(later.batch(rows, "validation").targets, usual.batch(rows, "validation").targets)
    assert not {*read_ids(usual)} & {*read_ids(later)}
    halves = task_of(*chosen, f"data.first_row={FIRST}", "data.partition=disjoint")
    each = ROWS if data == "synthetic" else ROWS // 2  # the generator's parts lie one after another
    parts = [{*read_ids(halves, group=group, num_groups=2, rows=each)} for group in range(2)]
    assert not parts[0] & parts[1]
    assert sorted(parts[0] | parts[1]) == list(range(FIRST, FIRST + 2 * each))


def test_the_key_names_a_run_only_where_it_is_used() -> None:
    hashes = [
        config_hash(make_config("task=criteo", *words)) for words in ([], ["data.first_row=0"], ["data.first_row=5"])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_window_of_text() -> None:
    unroll, first, rows = 8, 30, 50
    words = ["task=lm", f"task.unroll={unroll}"]
    whole = build_task(make_config(*words)).source
    later = build_task(make_config(*words, f"data.first_row={first}", f"data.max_rows={rows}")).source

    def line(source) -> np.ndarray:
        documents = source.documents("train")
        pairs = zip(documents.addresses, documents.lengths, strict=True)
        return np.concatenate([np.arange(begin, begin + length) for begin, length in pairs])

    expected = line(whole)[first * unroll :][: rows * unroll + 1]
    assert np.array_equal(line(later), expected)


def test_later_text_of_a_store_shares_no_document_with_earlier(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 20, size=rng.integers(20, 60)) for _ in range(60)]
    store = write_token_store(
        tmp_path / "store", documents={"train": documents, "validation": documents[:9]}, vocabulary=20, special={}
    )
    words = ["task=lm", "data=prepared", f"data.path={store.path}", "task.unroll=8"]
    early, late = (
        build_task(make_config(*words, *window)).source.documents("train")
        for window in (["data.max_rows=100"], ["data.first_row=100", "data.max_rows=80"])
    )
    assert early.addresses[-1] < late.addresses[0]
    assert 0.8 * 80 * 8 < late.num_tokens <= 80 * 8 + 1
    with pytest.raises(UserError, match=r"data\.first_row=9999: the training text ends before"):
        build_task(make_config(*words, "data.first_row=9999")).num_rows("train")


def test_a_first_row_behind_the_last_is_refused(store: Path) -> None:
    for words in (["data=synthetic"], ["data=prepared", f"data.path={store}"]):
        with pytest.raises(UserError, match=r"data\.first_row=99999: there are .* training rows, numbered from 0"):
            task_of(*words, "data.first_row=99999")


def test_a_finished_run_of_a_window_is_evaluated_on_it_and_elsewhere(store: Path, tmp_path: Path) -> None:
    """Its predictions of training rows carry the numbers that these have in the store, by which a teacher's are found."""
    words = ["task=criteo", "scale=smoke", "data=prepared", f"data.path={store}", "run.progress=false"]
    done = odist("train", *words, "run.dir=run", f"data.first_row={FIRST}", f"data.max_rows={ROWS}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluated = {"own.csv": ["--split", "train"], "all.csv": ["--split", "train", "--data", str(store)]}
    for file, options in evaluated.items():
        done = odist("eval", "run", *options, "--output", file, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    own, whole = (pd.read_csv(tmp_path / file).set_index("row") for file in evaluated)
    assert own.index.tolist() == [*range(FIRST, FIRST + ROWS)]
    assert np.allclose(own["prediction"], whole.loc[own.index, "prediction"])
    taught = ["algorithm=distill", "algorithm.teachers=[own.csv]", f"data.first_row={FIRST}", f"data.max_rows={ROWS}"]
    done = odist("train", *words, *taught, "run.dir=taught", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
