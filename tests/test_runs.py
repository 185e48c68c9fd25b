"""`odist runs` and `odist show`: which runs there are, what each one is and did, how two differ."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import SMOKE, command, environment, odist, refused

from odist.cli.printing import untaught
from odist.launch.results import combine
from odist.run.folder import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two retrains that codistil, and one with a folder name, a rate and a scale of its own."""
    folder = tmp_path_factory.mktemp("trained")
    for words in (
        ["algorithm=codistill", "algorithm.burn_in=0", "seed=1"],
        ["algorithm=codistill", "algorithm.burn_in=0", "seed=2"],
        ["optim.lr=0.3", "model.hidden=[8,4]", "run.dir=runs/mine", "seed=1"],
    ):
        done = odist("train", *SMOKE, *words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def paths(trained: Path) -> list[str]:
    return sorted(str(run.path.relative_to(trained)) for run in Run.find(trained))


def test_runs_as_table_and_json(trained: Path) -> None:
    shown = odist("runs", cwd=trained, columns=200).stdout
    rows = json.loads(odist("runs", "runs", "--json", cwd=trained).stdout)
    assert [row["path"] for row in rows] == paths(trained)
    for row in rows:
        [line] = [line for line in shown.splitlines() if row["path"] in line]
        results = Run.open(trained / row["path"]).results["metrics"]
        assert (row["metric"], row["value"]) == ("log_loss", results["log_loss"])
        assert (row["task"], row["data"], row["scale"], row["state"]) == ("criteo", "synthetic", "smoke", "finished")
        assert row["step"] == row["num_steps"] == 40
        for word in ("synthetic", "smoke", "finished", "40/40", f"log_loss {row['value']:.5f}"):
            assert word in line
    [mine] = [line for line in shown.splitlines() if "runs/mine" in line]
    assert mine.endswith("optim.lr=0.3 model.hidden=[8,4]")
    best_first = json.loads(odist("runs", "runs", "--json", "--sort", "metric", cwd=trained).stdout)
    assert [row["value"] for row in best_first] == sorted(row["value"] for row in rows)
    newest_first = json.loads(odist("runs", "runs", "--json", "--sort", "age", cwd=trained).stdout)
    assert newest_first[0]["path"] == "runs/mine"
    assert "no runs yet" in odist("runs", cwd=trained / "runs" / "mine").stdout


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["algorithm=codistill"], {"s1", "s2"}),
        (["algorithm=codistill", "seed=2"], {"s2"}),
        (["seed=2,3"], {"s2"}),
        (["optim.lr=0.30"], {"mine"}),
        (["model.hidden=[8,4]"], {"mine"}),
        (["task=lm"], set()),
        (["algorithm=co*", "state=finished", "data=synthetic", "data.path=null"], {"s1", "s2"}),
        (["state=interrupted"], set()),
    ],
    ids=lambda words: " ".join(sorted(words)),  # the same in every process
)
def test_runs_are_filtered_by_any_key(filters: list[str], expected: set[str], trained: Path) -> None:
    done = odist("runs", *filters, "--json", cwd=trained)
    if not expected:
        assert "none of 3 runs" in odist("runs", *filters, cwd=trained).stdout
        assert json.loads(done.stdout) == []
        return
    found = {re.sub(r".*-(s\d)-.*", r"\1", row["name"]) for row in json.loads(done.stdout)}
    assert found == expected


def test_columns_are_chosen_and_unknown_names_refused(trained: Path) -> None:
    shown = odist("runs", "--columns", "optim.lr,seed,auc", cwd=trained).stdout.splitlines()
    assert shown[0].split() == ["run", "optim.lr", "seed", "auc"]
    [mine] = [line.split() for line in shown if "mine" in line]
    auc = Run.open(trained / "runs" / "mine").results["metrics"]["auc"]
    assert mine == ["runs/mine", "0.3", "1", f"{auc:.5f}"]
    [row] = json.loads(odist("runs", "optim.lr=0.3", "--columns", "optim.lr,auc", "--json", cwd=trained).stdout)
    assert row["columns"] == {"optim.lr": 0.3, "auc": auc}
    refused(odist("runs", "--columns", "learning_rate", cwd=trained), "Did you mean optim.lr?")
    refused(odist("runs", "optim.learning_rate=1", cwd=trained), "Did you mean optim.lr?")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_names_of_runs_are_whole_at_every_width(columns: int, trained: Path) -> None:
    lines = odist("runs", cwd=trained, columns=columns).stdout.splitlines()
    for path in paths(trained):
        assert any(path in line.split() for line in lines)
    assert max(len(line) for line in lines if not line.startswith("runs/")) <= columns
    words = " ".join(lines)
    for said in ("synthetic", "smoke", "finished", "optim.lr=0.3"):
        assert said in words


def test_in_a_pipe_a_run_is_one_line(trained: Path) -> None:
    variables = {name: value for name, value in environment().items() if name != "COLUMNS"}
    done = subprocess.run(command("runs"), cwd=trained, env=variables, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4


def test_a_damaged_run_is_listed_and_hides_no_other(trained: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(trained, tmp_path / "work"))
    (work / "runs" / "mine" / "status.json").write_text('{"state": "fin')
    done = odist("runs", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stdout
    assert all(path in done.stdout for path in paths(trained))


# One run, two runs


def test_show_explains_a_run(trained: Path) -> None:
    first = paths(trained)[0]
    done = odist("show", first, cwd=trained, columns=80)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    words = " ".join(done.stdout.split())
    run = Run.open(trained / first)
    for said in (
        "finished after step 40 of 40",
        "odist train scale=smoke run.progress=false algorithm=codistill algorithm.burn_in=0 seed=1",
        "criteo, data synthetic, scale smoke, seed 1",
        "algorithm.burn_in=0 (default ",
        "steps old in the median",
        run.env["data_fingerprint"][:16],
        run.env["hardware"]["cpu"],
        f"torch {run.env['versions']['torch']}",
        "problems none",
        f"log_loss {run.results['metrics']['log_loss']:.5f}",
    ):
        assert said in words, said
    content = json.loads(odist("show", first, "--json", cwd=trained).stdout)
    assert content["changed"]["algorithm.burn_in"][1] == 0
    assert content["config"]["seed"] == 1
    assert content["training"][1]["teacher_age_steps"]["median"] > 0
    assert content["metrics"] == run.results["metrics"]


def test_show_names_the_problems_of_a_run(trained: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(trained, tmp_path / "work"))
    first = Run.open(work / paths(trained)[0])
    rows = [json.loads(line) for line in (first.path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.update({"teacher_age_steps": None} if row["kind"] == "train" and row["group"] == 1 else {})
    (first.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = " ".join(odist("show", first.path, cwd=work).stdout.split())
    assert "problems group 1 never had a teacher" in shown
    second = Run.open(work / paths(trained)[1])
    os.remove(second.path / "results.json")
    second.set_status(state="interrupted", step=20)
    shown = " ".join(odist("show", second.path, cwd=work).stdout.split())
    assert "interrupted after step 20 of 40" in shown
    assert "its `odist train` command continues it" in shown


def test_show_tells_the_differences_of_two_runs(trained: Path) -> None:
    first, second, mine = paths(trained)
    shown = odist("show", first, second, cwd=trained, columns=80).stdout
    assert re.search(r"^  seed +1 -> 2$", shown, re.M)
    assert "the same rows" in shown
    assert f"odist churn {first} {second}" in shown
    other = json.loads(odist("show", first, mine, "--json", cwd=trained).stdout)
    assert other["config"]["optim.lr"] == [0.05, 0.3]
    assert other["config"]["algorithm.name"] == ["codistill", "sync"]
    assert "run.dir" in other["config_without_effect"]
    values = [Run.open(trained / path).results["metrics"]["auc"] for path in (first, mine)]
    assert other["metrics"]["auc"] == values
    refused(odist("show", first, second, mine, cwd=trained), "3 were given")
    refused(odist("show", "nowhere", cwd=trained), "nowhere")


def test_a_long_cell_is_wrapped_behind_the_others() -> None:
    from odist.cli.runs import Entry, table

    row = {"path": "runs/a", "name": "a", "task": "criteo", "data": "synthetic", "scale": "smoke", "algorithm": "sync",
           "num_groups": 1, "seed": 0, "overrides": [f"optim.key{n}=1" for n in range(6)], "state": "finished", "step": 1,
           "num_steps": 1, "metric": None, "value": None, "metrics": {}, "updated": None, "untaught_groups": [],
           "problem": None}  # fmt: skip
    lines = list(table([Entry(row)], columns=["run", "state", "overrides"], width=60))
    assert lines[1].split() == ["runs/a", "finished", "optim.key0=1", "optim.key1=1", "optim.key2=1"]
    assert lines[2] == " " * lines[1].index("optim.key0") + "optim.key3=1 optim.key4=1 optim.key5=1"


def test_untaught_groups_keep_their_numbers_where_another_is_missing(train: Callable[..., Run]) -> None:
    run = train("algorithm=codistill", "num_groups=3", "algorithm.burn_in=1000000", "train.max_examples=400")
    assert run.untaught_groups == [0, 1, 2]
    combine(run, missing=[0])
    assert run.missing_groups == [0]
    assert run.untaught_groups == [1, 2]
    assert "groups 1, 2 never had a teacher" in untaught(run)[0]
