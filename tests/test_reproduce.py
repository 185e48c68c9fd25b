"""Reproducing a recipe with real training processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import odist
from odist.claims.planned import planned_runs
from odist.claims.recipe_file import load_recipe
from odist.claims.record import RUNS_FILE, Record, read_lines
from odist.claims.reproduce import ReproduceResult, reproduce
from odist.engine.evaluation import evaluate
from odist.errors import OdistError, UserError
from odist.run.folder import Run

PROJECT = Path(__file__).resolve().parent.parent
RECIPE = """
title: Tiny
reference: dnn
seeds: [1, 2, 3]
metrics: [log_loss, mean_abs_difference]
overrides: [task=criteo, data=synthetic, train.max_examples=200, task.synthetic.validation_rows=200]
systems:
  dnn: {label: DNN, overrides: [algorithm=sync]}
claims: []
scales: {smoke: {}, small: {seeds: [1]}}
variants: {made: {label: Synthetic}, real: {overrides: [data=prepared, "data.path=${data_path}"], needs: data_path}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReproduceResult, list[str]]:
    """The recipe reproduced once: its folder, the result, and the lines printed."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "tiny.yaml").write_text(RECIPE)
    lines: list[str] = []
    result = reproduce(root / "tiny.yaml", output=root / "reports", runs_dir=root / "runs", jobs=3, echo=lines.append)
    return root, result, lines


def test_runs_are_trained_recorded_and_reported(done: tuple[Path, ReproduceResult, list[str]]) -> None:
    root, result, lines = done
    assert result.left_out == {"real": "data_path"}
    assert "skipped variant real: give --data-path DIR" in lines
    assert sum("finished" in line for line in lines) == 3
    assert result.folder == root / "reports" / "tiny"
    assert {path.name for path in result.files} == {"tiny.md", "tiny.csv", "tiny.svg", "manifest.json"}
    runs = [Run.open(root / "runs" / "tiny" / "smoke" / f"made-dnn-s{seed}") for seed in (1, 2, 3)]
    assert all(run.finished for run in runs)
    record, *_ = read_lines(result.folder / RUNS_FILE, Record).lines
    assert record.name == "made-dnn-s1"
    predictions = [run.predictions().probabilities for run in runs]
    assert record.results == runs[0].results
    assert record.churn["2"]["mean_abs_difference"] == np.abs(predictions[0] - predictions[1]).mean()
    assert record.evaluations[-1]["examples"] == 200
    churn = np.mean([np.abs(a - b).mean() for a, b in combinations(predictions, 2)])
    assert churn > 0
    table = (result.folder / "tiny.csv").read_text().splitlines()
    column = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    assert float(column["mean_abs_difference"]) == pytest.approx(churn)
    assert float(column["mean_abs_difference_low"]) < churn < float(column["mean_abs_difference_high"])


def test_finished_runs_are_reused_and_the_report_comes_out_the_same(
    done: tuple[Path, ReproduceResult, list[str]],
) -> None:
    root, result, _ = done
    assert not [*(root / "runs").rglob("*.safetensors")]  # a record needs no checkpoint
    with pytest.raises(UserError, match="its checkpoints were deleted"):
        evaluate(Run.open(root / "runs" / "tiny" / "smoke" / "made-dnn-s1"), split="validation")
    predicted = {path: path.stat().st_mtime_ns for path in (root / "runs").rglob("*.npy")}
    before = {path.name: path.read_bytes() for path in result.files}
    again = reproduce(root / "tiny.yaml", output=root / "reports", runs_dir=root / "runs", jobs=3, echo=lambda _: None)
    assert predicted
    assert {path: path.stat().st_mtime_ns for path in (root / "runs").rglob("*.npy")} == predicted
    assert {path.name: path.read_bytes() for path in again.files} == before


def test_the_report_alone_needs_no_runs(done: tuple[Path, ReproduceResult, list[str]], tmp_path: Path) -> None:
    root, result, _ = done
    shutil.copytree(result.folder, tmp_path / "reports" / "tiny")
    again = reproduce(root / "tiny.yaml", output=tmp_path / "reports", runs_dir=tmp_path / "none", only_report=True)
    for old, new in zip(result.files, again.files, strict=True):
        assert old.read_bytes() == new.read_bytes(), old.name
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="no report of a recipe"):
        reproduce(root / "tiny.yaml", output=tmp_path / "empty", runs_dir=tmp_path / "none", only_report=True)


def test_the_report_alone_takes_over_another_wording_but_no_other_recipe(
    done: tuple[Path, ReproduceResult, list[str]], tmp_path: Path
) -> None:
    _, result, _ = done
    shutil.copytree(result.folder, tmp_path / "reports" / "tiny")
    page, lines = tmp_path / "reports" / "tiny" / "tiny.md", list[str]()
    where = {"output": tmp_path / "reports", "runs_dir": tmp_path / "none", "only_report": True, "echo": lines.append}
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("label: DNN", "label: single network"))
    table = (tmp_path / "reports" / "tiny" / "tiny.csv").read_bytes()
    reproduce(tmp_path / "tiny.yaml", **where)
    assert "| single network | 3 |" in page.read_text()
    assert (tmp_path / "reports" / "tiny" / "tiny.csv").read_bytes() == table
    assert not any("changed" in line for line in lines)
    other_scale = RECIPE.replace("label: DNN", "label: single network").replace(
        "seeds: [1]}", "seeds: [1], overrides: [train.batch=7]}"
    )
    (tmp_path / "tiny.yaml").write_text(other_scale)
    reproduce(tmp_path / "tiny.yaml", **where)
    assert (tmp_path / "reports" / "tiny" / "recipe.yaml").read_text() == other_scale
    assert not any("changed" in line for line in lines)
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("label: DNN", "label: other").replace("[1, 2, 3]", "[1, 2]"))
    reproduce(tmp_path / "tiny.yaml", **where)
    assert "| single network | 3 |" in page.read_text()
    assert any("the recipe has changed since the records were made" in line for line in lines)


def test_a_dry_run_prints_the_commands_and_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    lines: list[str] = []
    where = {"output": tmp_path / "reports", "runs_dir": tmp_path / "runs"}
    result = reproduce(
        tmp_path / "tiny.yaml", scale="small", data_path=tmp_path, dry_run=True, echo=lines.append, **where
    )
    assert len(result.commands) == len(lines) == 2
    assert lines[0].startswith("odist train scale=small task=criteo")
    assert "seed=1" in lines[0]
    assert f"data.path={tmp_path}" in lines[1]
    assert "real-dnn-s1" in lines[1]
    assert result.folder == tmp_path / "reports" / "tiny-small"  # not the recipe's own scale: a folder of its own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_only_the_named_variants_are_trained_and_the_others_stay_as_they_are(
    done: tuple[Path, ReproduceResult, list[str]], tmp_path: Path
) -> None:
    _, result, _ = done
    shutil.copytree(result.folder, tmp_path / "reports" / "tiny")
    records = tmp_path / "reports" / "tiny" / RUNS_FILE
    before = records.read_bytes().splitlines()
    again = RECIPE.replace("real:", "again: {label: Again, overrides: [data=synthetic, data.seed=1]}, real:")
    (tmp_path / "tiny.yaml").write_text(again.replace("seeds: [1, 2, 3]", "seeds: [1]"))
    where = {"output": tmp_path / "reports", "runs_dir": tmp_path / "runs"}
    lines: list[str] = []
    reproduce(tmp_path / "tiny.yaml", variants=["again"], echo=lines.append, **where)
    assert [path.name for path in (tmp_path / "runs" / "tiny" / "smoke").iterdir() if path.is_dir()] == ["again-dnn-s1"]
    assert records.read_bytes().splitlines()[1:] == before  # one more run is one more line
    assert read_lines(records, Record).lines[0].name == "again-dnn-s1"
    page = (tmp_path / "reports" / "tiny" / "tiny.md").read_text()
    assert "## Synthetic" in page
    assert "## Again" in page
    assert not any("skipped" in line for line in lines)
    both = reproduce(tmp_path / "tiny.yaml", variants=["made", "again"], dry_run=True, **where)
    assert len(both.commands) == 2
    with pytest.raises(UserError, match=r"no variant 'agian' at scale smoke. Choose among: made, again, real\."):
        reproduce(tmp_path / "tiny.yaml", variants=["again", "agian"], **where)
    with pytest.raises(UserError, match=r"runs real on prepared data only(.|\n)*--data-path"):
        reproduce(tmp_path / "tiny.yaml", variants=["real"], **where)


def test_failed_runs_are_named_with_their_last_words(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("algorithm=sync", "algorithm=synk"))
    with pytest.raises(OdistError, match=r"1 of 1 runs failed(.|\n)*made-dnn-s1: exit code 2(.|\n)*sync"):
        reproduce(tmp_path / "bad.yaml", scale="small", output=tmp_path / "reports", runs_dir=tmp_path / "runs")
    assert not (tmp_path / "reports").exists()


def test_a_folder_where_a_log_belongs_is_named(tmp_path: Path) -> None:
    log = tmp_path / "runs" / "demo" / "smoke" / "dnn-s1.log"
    log.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{log}: a folder, a file belongs there. Remove it"):
        reproduce("demo", scale="smoke", output=tmp_path / "out", runs_dir=tmp_path / "runs", jobs=1)


def test_an_interruption_saves_the_runs_and_leaves_no_process(tmp_path: Path) -> None:
    long = RECIPE.replace("train.max_examples=200", "train.passes=100000").replace("seeds: [1, 2, 3]", "seeds: [1]")
    (tmp_path / "long.yaml").write_text(long)
    code = (
        "import sys; from pathlib import Path\n"
        "from odist.errors import OdistError; from odist.claims.reproduce import reproduce\n"
        "try: reproduce('long.yaml', output=Path('reports'), runs_dir=Path('runs'))\n"
        "except OdistError as error: print(error); sys.exit(error.exit_code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    status = tmp_path / "runs" / "long" / "smoke" / "made-dnn-s1" / "status.json"
    try:
        give_up = time.monotonic() + 60
        while not (status.is_file() and json.loads(status.read_text()).get("step", 0) > 0):
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"the same command continues" in output
    state = json.loads(status.read_text())
    assert state["state"] == "interrupted"
    assert state["step"] > 0
    with pytest.raises(ProcessLookupError):
        os.kill(state["pid"], 0)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_demo_writes_where_git_ignores_it() -> None:
    """A clone stays clean: the report goes to a folder that is ignored, as runs do."""
    project = Path(odist.__file__).parent.parent
    printed = subprocess.run(["make", "-n", "demo"], cwd=project, capture_output=True, text=True, check=True).stdout
    [command] = [line.split() for line in printed.splitlines() if "reproduce demo" in line]
    assert "--output" in command
    output = command[command.index("--output") + 1]
    assert f"/{output}/" in (project / ".gitignore").read_text().splitlines()
    assert f"{output}/demo/demo.md" in printed


def test_the_demo_compares_at_equal_rows_and_one_rate() -> None:
    recipe = load_recipe("demo")
    plan, _ = planned_runs(recipe, "small", variables={})
    equal = {run.system: run.overrides for run in plan if "data.partition=disjoint" not in run.overrides}
    assert list(equal) == ["dnn", "ensemble", "codistill"]
    assert (
        len(
            {
                tuple(line for line in lines if line.startswith(("task", "data", "train", "optim")))
                for lines in equal.values()
            }
        )
        == 1
    )
    assert {system.tuned_with for system in recipe.systems.values()} == {None, "dnn"}
    assert recipe.systems["dnn"].tuned_with is None
