"""The command line as its users meet it: exit codes, what is printed, what is left behind.

Most commands run inside this process (`odist`), which saves imports; those about processes, signals, start-up
and the shell run in one of their own (`spawn`). Multiruns that fail or are stopped: test_sweeps.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from odist import __version__
from odist.cli.completion import candidates, complete_overrides
from odist.cli.main import main
from odist.config.identity import to_dict
from odist.config.read import load
from odist.run.folder import Run
from odist.run.log import describe, describe_briefly
from odist.run.progress import Pace, duration

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ["scale=smoke", "run.progress=false"]
LONG = ["scale=small", "run.progress=false", "train.passes=1000", "train.evaluate_every=0"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "odist.cli.main", *map(str, arguments)]


def spawn(*arguments: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process."""
    variables = {**environment(), **more}
    return subprocess.run(command(*arguments), cwd=cwd, env=variables, capture_output=True, text=True, timeout=240)


def odist(*arguments: str | Path, cwd: Path, columns: int = 120) -> subprocess.CompletedProcess[str]:
    """Run a command inside this process."""
    given = ["odist", *map(str, arguments)]
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", given)
        patch.setenv("COLUMNS", str(columns))
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(given, code, out.getvalue(), errors.getvalue())


def refused(done: subprocess.CompletedProcess[str], *said: str, code: int = 2) -> None:
    """One screen, no traceback, the right code and words."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 24
    for words in said:
        assert words in done.stderr


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which three retrains were trained by one multirun; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    done = spawn("train", "-m", *SMOKE, "seed=1,2,3", "run.dir=runs", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "work"))


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


# Start


def test_help_names_every_verb_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom odist.cli.main import main\nsys.argv = ['odist', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'pandas', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "eval", "churn", "plot", "prepare", "reproduce", "runs"):
        assert re.search(rf"\b{verb}\b", done.stdout)


def test_version(tmp_path: Path) -> None:
    done = spawn("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"odist {__version__}\n")


def test_the_entry_point_is_the_module() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"odist": "odist.cli.main:main"}


def test_unknown_verb_and_missing_argument(tmp_path: Path) -> None:
    assert odist("trian", cwd=tmp_path).returncode == 2
    assert odist("eval", cwd=tmp_path).returncode == 2


# Hydra's own command line


def test_cfg_prints_the_configuration_and_makes_nothing(tmp_path: Path) -> None:
    done = odist("train", "algorithm=codistill", "--cfg", "job", "--resolve", "seed=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = yaml.safe_load(done.stdout)
    assert (content["num_groups"], content["seed"], content["algorithm"]["teacher"]) == (2, 5, "peers")
    assert load(content).seed == 5
    assert not list(tmp_path.iterdir())


def test_config_dir_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "mine" / "algorithm").mkdir(parents=True)
    (tmp_path / "mine" / "algorithm" / "three.yaml").write_text(
        "# @package _global_\nnum_groups: 3\nalgorithm:\n  name: three\n  teacher: peers\n"
    )
    done = odist("train", "--config-dir", "mine", "algorithm=three", "--cfg", "job", cwd=tmp_path)
    assert yaml.safe_load(done.stdout)["num_groups"] == 3


# Errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sed=1"], ["no key sed", "seed"]),
        (["train.btch=1"], ["no key train.btch", "train.batch"]),
        (["+fooo=1"], ["no key fooo"]),
        (["algorithm=codistil"], ["algorithm=codistil", "Did you mean codistill?", "local_sgd"]),
        (["model=mpl"], ["Did you mean mlp?", "dcn_v2, deepfm, lstm, mlp, resnet, resnet50, transformer, wrn."]),
        (["task=imagenet", "model=resnet18"], ["model=resnet model.depth=18"]),
        (["train.batch=many"], ["train.batch=many", "expected a whole number"]),
        (["codistill"], ["codistill: not KEY=VALUE", "algorithm=codistill"]),
        (["optim.lr=${nope}"], ["nope"]),
        (["algorithm=distill"], ["algorithm.teachers"]),
        (["algorithm=sync,codistill"], ["Add -m"]),
        (["-m", "run.dir=a,b", "seed=1,2"], ["run.dir", "parent folder"]),
        (["--experimental-rerun", "x"], ["--experimental-rerun"]),
        (["--config-dir", "nowhere"], ["nowhere"]),
        (["hydra/launcher=jobli"], ["hydra/launcher=jobli"]),
    ],
    ids=lambda value: value[0] if value else "",
)
def test_what_train_refuses(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    refused(odist("train", *arguments, cwd=tmp_path), *said)
    assert not list(tmp_path.iterdir())


def test_refused_jobs_of_a_multirun_are_listed(tmp_path: Path) -> None:
    done = odist("train", "-m", *SMOKE, "algorithm=codistill", "num_groups=1", "seed=1,2", cwd=tmp_path)
    refused(done, "2 of the runs failed", "num_groups=1 seed=1", "num_groups=1 seed=2")
    assert not list(tmp_path.glob("runs/*"))


def test_an_error_is_printed_by_a_process_as_inside_one(tmp_path: Path) -> None:
    refused(spawn("train", "sed=1", cwd=tmp_path), "no key sed", "seed")


def test_the_users_own_wish_for_tracebacks_is_kept(tmp_path: Path) -> None:
    done = spawn("train", "sed=1", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_start_that_the_worker_refuses_leaves_no_folder(tmp_path: Path) -> None:
    done = odist("train", *SMOKE, "train.batch=3000", "run.dir=here", cwd=tmp_path)
    refused(done, "train.batch")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("verb", ["eval", "churn", "plot", "runs"])
def test_missing_folders(verb: str, tmp_path: Path) -> None:
    refused(odist(verb, "nowhere", *(["nowhere2"] if verb == "churn" else []), cwd=tmp_path), "nowhere")


# Run folders


def test_a_multirun_makes_one_folder_each_and_no_litter(trained: Path) -> None:
    assert [path.name for path in trained.iterdir()] == ["runs"]
    names = [path.name for path in runs_of(trained)]
    assert len(names) == 3
    for seed, name in zip((1, 2, 3), names, strict=True):
        assert re.fullmatch(rf"criteo-sync-s{seed}-[0-9a-f]{{8}}", name)


def test_the_run_folder_says_where_it_comes_from(trained: Path) -> None:
    run = Run.open(runs_of(trained)[0])
    assert run.env["config_hash"].startswith(run.name.rpartition("-")[2])
    assert run.env["versions"]["torch"]
    assert len(run.env["source_hash"]) == 64
    assert set(run.env["hardware"]) == {"cpu", "cores", "memory_gb", "gpu"}
    assert (run.path / "overrides.txt").read_text().splitlines()[0] == "scale=smoke"
    assert to_dict(load(run.path / "config.yaml")) == run.config


def test_the_same_command_again_prints_the_results(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    done = odist("train", *SMOKE, "seed=1", cwd=work)
    assert done.returncode == 0
    assert "finished" in done.stdout
    assert "log_loss" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before


def test_another_configuration_in_the_same_folder_is_refused(work: Path) -> None:
    run = runs_of(work)[0]
    done = odist("train", *SMOKE, "seed=9", "optim.lr=0.125", f"run.dir={run}", cwd=work)
    refused(done, "seed: 1 -> 9", "optim.lr: 0.05 -> 0.125")


def test_keys_that_decide_nothing_may_change(work: Path) -> None:
    done = odist("train", *SMOKE, "seed=1", "train.prefetch=0", f"run.dir={runs_of(work)[0]}", cwd=work)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "note").write_text("mine")
    refused(odist("train", *SMOKE, "run.dir=papers", cwd=tmp_path), "papers", "not a run folder")
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["note"]


def test_a_run_that_another_process_trains_is_refused(work: Path) -> None:
    run = Run.open(runs_of(work)[0])
    run.set_status(state="running", pid=os.getpid(), pid_started=None)
    run.write_json("status.json", {key: value for key, value in run.status.items() if key != "pid_started"})
    done = spawn("train", *SMOKE, "seed=1", cwd=work)
    refused(done, f"is being trained by process {os.getpid()}")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", *LONG, *arguments), cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(path: Path) -> bool:
    return (path / "status.json").is_file() and Run(path).status.get("state") == "running"


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "same command continues" in errors
    assert errors.splitlines()[-1].startswith("stopped: ")  # it was asked for, and is no error
    assert "error" not in errors
    assert "Traceback" not in errors
    return errors


def test_killed_or_stopped_by_a_signal_the_same_command_continues(tmp_path: Path) -> None:
    process = start(tmp_path, "run.dir=a", "train.checkpoint_every=25600")
    until(lambda: is_running(tmp_path / "a") and len(Run(tmp_path / "a").checkpoint_steps(0)) > 0)
    process.kill()
    process.communicate(timeout=60)
    run = Run(tmp_path / "a")
    assert run.status["state"] == "running"
    [row] = json.loads(odist("runs", ".", "--json", cwd=tmp_path).stdout)
    assert row["state"] == "interrupted"
    saved = run.checkpoint_steps(0)[-1]
    again = start(tmp_path, "run.dir=a")
    until(lambda: is_running(tmp_path / "a") and run.status.get("pid") == again.pid and run.status["step"] >= saved)
    assert "step" in stop(again, signal.SIGTERM)
    assert run.status["state"] == "interrupted"
    assert run.checkpoint_steps(0)[-1] == run.status["step"] >= saved


# Progress


def test_lines_off_a_terminal_say_how_long_is_left(tmp_path: Path) -> None:
    done = odist("train", "scale=smoke", "run.dir=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^group 0 step 20/40: validation log_loss 0\.\d{4}, auc 0\.\d{4}, \d:\d\d left$", done.stderr, re.M
    )
    last = [line for line in done.stderr.splitlines() if "step 40/40" in line][-1]
    assert "left" not in last


def test_time_left_is_that_of_steps_since_a_continuation() -> None:
    pace = Pace(100)
    assert pace.left(50, now=1000.0) is None
    assert pace.left(60, now=1020.0) == pytest.approx(80.0)
    assert [duration(seconds) for seconds in (None, 5.4, 125, 3723)] == ["-:--", "0:05", "2:05", "1:02:03"]


def test_bars_on_a_terminal_fit_into_its_lines(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    variables = {name: value for name, value in environment().items() if name not in ("NO_COLOR", "COLUMNS")}
    arguments = command("train", "algorithm=codistill", "scale=smoke", "run.dir=a", "algorithm.burn_in=0")
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env={**variables, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    lines = [line.strip("\r") for line in re.split(r"\r?\n|\r", text)]
    bars = [line for line in lines if re.match(r"group [01] .*/40", line)]
    numbers = [line for line in lines if line.startswith("  loss ")]
    assert {line[:7] for line in bars} == {"group 0", "group 1"}
    assert max(map(len, bars + numbers)) <= 80
    assert any(re.search(r"40/40", line) for line in bars)
    whole = r"  loss 0\.\d{4}  validation loss 0\.\d{4}  teacher \d+ steps old  [\d.]+k? examples/s"
    assert any(re.match(whole, line) for line in numbers), numbers[-1]
    assert any(re.search(r"\d:\d\d left", line) for line in bars)


def test_a_line_of_numbers_leaves_out_what_matters_least() -> None:
    row = {"label_loss": 0.5, "distill_loss": 0.6, "teacher_age_steps": 29, "examples_per_second": 15_500.0}
    whole = "loss 0.5000  validation loss 0.4000  distillation 0.6000  teacher 29 steps old  15.5k examples/s"
    assert describe_briefly(row, validation=0.4, room=200) == whole
    assert describe_briefly(row, validation=0.4, room=78) == whole.replace("distillation 0.6000  ", "")
    assert describe_briefly(row, validation=None, room=40) == "loss 0.5000  teacher 29 steps old"
    assert describe_briefly(row, validation=0.4, room=5) == "loss 0.5000"
    row |= {"waited_seconds": 1.25, "publish_failed": 2, "exchange_rejected": 3, "teacher_stale": [1], "kind": "train"}
    assert describe_briefly(row, validation=0.4, room=200).endswith("s  3 rejected  2 not published  waited 1.2 s")
    assert "29 steps old, nothing new from group 1, 3 rejected, 2 not published, waited 1.2 s, 15" in describe(row)


# The other verbs


def test_eval_repeats_the_results_and_writes_predictions(work: Path) -> None:
    run = Run.open(runs_of(work)[0])
    done = odist("eval", run.path, "--json", "--output", "p.csv", cwd=work)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["log_loss"] == pytest.approx(run.results["metrics"]["log_loss"], abs=1e-7)
    assert results["log_loss_interval"][0] < results["log_loss"] < results["log_loss_interval"][1]
    assert {"auc", "auc_interval", "accuracy", "accuracy_interval"} <= set(results)
    assert len((work / "p.csv").read_text().splitlines()) == 1001
    refused(odist("eval", run.path, "--output", "p.txt", cwd=work), ".csv or .parquet")


def test_churn_is_that_of_the_written_predictions(trained: Path) -> None:
    paths = runs_of(trained)
    done = odist("churn", *paths, "--json", "--slice", "label", cwd=trained)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    p = [np.load(path / "predictions" / "validation" / "group-0.npy").astype(float) for path in paths]
    expected = np.mean([np.abs(p[i] - p[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert result["mean_abs_difference"] == pytest.approx(expected, rel=1e-6)
    low, high = result["mean_abs_difference_interval"]
    assert low < expected < high
    assert len(result["slices"]["label"]) == 2
    table = odist("churn", *paths, cwd=trained).stdout
    assert "3 retrains, 3 pairs, 1,000 rows" in table
    assert "mean_abs_difference" in table
    refused(odist("churn", paths[0], cwd=trained), "at least two")


def criteo_rows(path: Path, *, rows: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            numbers = [str(n) if n % 5 else "" for n in random.integers(0, 90, 13)]
            words = [f"{n:08x}" for n in random.integers(0, 40, 26)]
            file.write("\t".join([str(random.integers(2)), *numbers, *words]) + "\n")
    return path


def test_prepare_then_train_then_evaluate_on_further_rows(tmp_path: Path) -> None:
    rows, more = (
        criteo_rows(tmp_path / "rows.txt", rows=200, seed=1),
        criteo_rows(tmp_path / "more.txt", rows=50, seed=2),
    )
    made = odist("prepare", "criteo", "--input", rows, "--output", "store", "--buckets", "500", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert json.loads((tmp_path / "store" / "store.json").read_text())["task"] == "criteo"
    like = odist("prepare", "criteo", "--input", more, "--output", "further", "--like", "store", cwd=tmp_path)
    assert like.returncode == 0, like.stderr
    prepared = ["data=prepared", "train.batch=20"]
    done = odist("train", *SMOKE, *prepared, "data.path=store", "run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "run").config["data"]["path"] == str(tmp_path / "store")
    results = json.loads(odist("eval", "run", "--data", "further", "--json", cwd=tmp_path).stdout)
    assert results["rows"] == 50
    refused(odist("eval", "run", "--data", "nowhere", cwd=tmp_path), "nowhere")
    shutil.move(tmp_path / "store", tmp_path / "moved")
    again = odist("train", *SMOKE, *prepared, "data.path=moved", "run.dir=run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    refused(odist("train", *SMOKE, *prepared, "data.path=further", "run.dir=run", cwd=tmp_path), "fingerprint")
    refused(odist("prepare", "criteo", "--input", "none.txt", "--output", "x", cwd=tmp_path), "none.txt")


def test_plot_writes_figures(work: Path) -> None:
    done = odist("plot", "runs", "--output", "figures", "--metric", "log_loss", "--x", "steps", cwd=work)
    assert done.returncode == 0, done.stderr
    written = [work / line for line in done.stdout.split()]
    assert {path.suffix for path in written} == {".png", ".svg"}
    assert all(path.stat().st_size > 1000 for path in written)


def test_reproduce_lists_its_commands(tmp_path: Path) -> None:
    done = odist("reproduce", "demo", "--dry-run", "--scale", "smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("untuned: ")]
    assert lines
    assert all(line.startswith("odist train") for line in lines)
    refused(odist("reproduce", "dmeo", cwd=tmp_path), "dmeo", "demo")


@pytest.mark.parametrize("verb", ["reproduce", "tune"])
def test_variants_are_chosen_by_name(verb: str, tmp_path: Path) -> None:
    arguments = [verb, "criteo_table1", "--scale", "smoke", "--dry-run", "--data-path", tmp_path]
    done = odist(*arguments, "--variant", "real", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained = [line for line in done.stdout.splitlines() if line.startswith("odist train")]
    assert trained
    assert all("data=prepared" in line for line in trained)
    both = odist(*arguments, "--variant", "real", "--variant", "synthetic", cwd=tmp_path)
    assert both.stdout == odist(*arguments, cwd=tmp_path).stdout
    refused(odist(*arguments, "--variant", "reel", cwd=tmp_path), "reel", "synthetic, real")


# Completion


def complete(monkeypatch: pytest.MonkeyPatch, typed: str) -> list[str]:
    """What bash is offered after `odist train TYPED`: it cuts words at blanks and around `=`."""
    words = ["odist", "train", *re.findall(r"=|[^\s=]+", typed)] + ([""] if typed.endswith(" ") or not typed else [])
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    return complete_overrides("" if words[-1] == "=" else words[-1])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("alg", ["algorithm=codistill", "algorithm=sync"]),
        ("algorithm=", ["codistill", "sync"]),
        ("algorithm=co", ["codistill"]),
        ("-m algorithm=sync,co", ["sync,codistill"]),
        ("--cfg job scale=sm", ["small", "smoke"]),
        ("optim.schedule=c", ["constant", "cosine"]),
        ("train.ba", ["train.batch=", "train.batch=VALUE"]),
        ("optim.nest", ["optim.nesterov=true", "optim.nesterov=false"]),
        ("seed=1 tra", ["train.batch=", "train.passes="]),
        ("see", ["seed=", "seed=VALUE"]),
        ("", ["task=", "algorithm=", "seed="]),
    ],
)
def test_completion_in_bash(typed: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = complete(monkeypatch, typed)
    assert set(expected) <= set(found)
    if len(expected) == 1:
        assert found == expected


def test_completion_gives_other_shells_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMP_WORDS", raising=False)
    assert complete_overrides("algorithm=cod") == ["algorithm=codistill"]


def test_every_candidate_is_accepted_by_hydra() -> None:
    from hydra import compose, initialize_config_dir

    from odist.config.read import register

    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for group in ("task", "algorithm", "data", "scale", "model", "optim", "exchange", "launch"):
            offered = candidates(f"{group}=", folders=[ROOT / "conf"])
            assert offered
            for candidate in offered:
                compose("config", [candidate])


def test_completion_through_the_shells_protocol(tmp_path: Path) -> None:
    done = spawn(
        cwd=tmp_path,
        _ODIST_COMPLETE="complete_bash",
        COMP_WORDS="odist train algorithm = cod",
        COMP_CWORD="4",
    )
    assert done.stdout.split() == ["codistill"]
