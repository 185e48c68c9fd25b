"""A package that adds parts of every kind with options, choices and presets of its own, installed beside odist."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Typed

ROOT = Path(__file__).resolve().parent.parent
MOONS = ROOT / "tests" / "data" / "moons"
ENTRY_POINTS = """
[odist.tasks]
moons = moons:Moons
[odist.models]
tiny = moons:Tiny
[odist.strategies]
gossip = moons_parts:Gossip
[odist.teachers]
tempered = moons_parts:Tempered
[odist.exchange]
rounded = moons_parts:Rounded
"""


def install(site: Path, *, conf: bool) -> Path:
    """Lay the package out as pip would; with its folder of choices or without."""
    shutil.copytree(MOONS, site, ignore=None if conf else shutil.ignore_patterns("moons_conf"))
    info = site / "moons-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moons\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS + ("[odist.conf]\nmoons = moons_conf\n" if conf else ""))
    return site


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("bare") / "site", conf=False)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("full") / "site", conf=True)


def odist(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", "from odist.cli.main import main; main()", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def typed_in_turn(site: Path, *commands: tuple[str, ...], cwd: Path) -> list[Typed]:
    """Type several commands of odist in one process, which saves the seconds of its start."""
    code = "import json, sys; from conftest import odist\n"
    code += "for words in json.loads(sys.argv[1]): print(json.dumps(vars(odist(*words, cwd=sys.argv[2]))))"
    path = os.pathsep.join([str(site), str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands), str(cwd)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Typed(**json.loads(line)) for line in done.stdout.splitlines()]


def test_entry_points_alone_make_a_task_and_a_model_trainable(bare: Path, tmp_path: Path) -> None:
    typed = (
        "task=moons",
        "scale=smoke",
        "task.noise=0.2",
        "model.hidden=5",
        "algorithm=codistill",
        "algorithm.burn_in=128",
    )
    done = odist(bare, "train", *typed, "launch=local", "run.dir=run", "run.progress=false", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["task"]["noise"], config["model"]["name"], config["model"]["hidden"]) == (0.2, "tiny", 5)
    assert (config["optim"]["name"], config["train"]["batch"]) == ("sgd", 32)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [group["taught"] for group in results["groups"]] == [True, True]
    evaluated = odist(bare, "eval", "run", "--json", cwd=tmp_path)
    assert json.loads(evaluated.stdout)["log_loss"] == pytest.approx(results["metrics"]["log_loss"])


def test_its_keys_are_checked_explained_and_completed(bare: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = odist(bare, "train", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        return done.stderr

    assert "task.noise=-1.0: expected a number more than 0" in said("task=moons", "task.noise=-1")
    assert "model.hidden" in said("task=moons", "model.hiden=3")
    assert "moons" in said("task=moon")
    help_page = odist(bare, "train", "task=moons", "--help", cwd=tmp_path).stdout
    assert "standard deviation of a point from its moon" in help_page
    assert "units of the layer" in help_page
    code = "from odist.cli.completion import candidates\nfrom odist.config.folder import config_folders\n"
    code += "print(candidates('task=', folders=config_folders()), candidates('model.hid', folders=config_folders()))"
    path = os.pathsep.join([str(bare), str(ROOT)])
    shown = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert "task=moons" in shown.stdout


TYPED = ("task=moons", "scale=smoke", "train.max_examples=320", "run.progress=false")
TAUGHT = (*TYPED, "algorithm=codistill", "algorithm.teacher=tempered", "exchange=rounded")


def weight_hashes(folder: Path) -> list[str]:
    return [group["weight_hash"] for group in json.loads((folder / "results.json").read_text())["groups"]]


def test_a_strategy_a_teacher_and_an_exchange_take_their_options(bare: Path, tmp_path: Path) -> None:
    gossip = ("algorithm.strategy=gossip", "workers=2", "algorithm.share=0.25", "algorithm.softness=4")
    *trained, again = typed_in_turn(
        bare,
        ("train", *TAUGHT, *gossip, "exchange.digits=1", "run.dir=a"),
        ("train", *TAUGHT, *gossip, "exchange.digits=3", "run.dir=b"),
        ("train", *TAUGHT, "run.dir=c"),
        ("train", *TAUGHT, "exchange.digits=4", "run.dir=c"),
        cwd=tmp_path,
    )
    assert [(done.returncode, done.stderr) for done in trained] == [(0, "")] * 3
    first, last = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in "ac")
    assert first["algorithm"]["share"] == 0.25
    assert [one["algorithm"]["softness"] for one in (first, last)] == [4.0, 2.0]
    assert [one["exchange"]["digits"] for one in (first, last)] == [1, 2]
    assert "share" not in last["algorithm"]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["predictor"] == "group-0"  # groups that teach each other, as with odist's own peers
    assert [group["taught"] for group in results["groups"]] == [True, True]
    assert len({digest for name in "abc" for digest in weight_hashes(tmp_path / name)}) == 6
    assert (again.returncode, "exchange.digits: 2 -> 4" in again.stderr) == (2, True)


def test_options_of_its_parts_are_there_only_where_the_part_is_chosen(full: Path, tmp_path: Path) -> None:
    refused = {
        ("algorithm.share=0.3",): "algorithm.share=0.3: only algorithm.strategy=gossip reads it",
        ("algorithm=ring", "algorithm.share=2"): "algorithm.share=2.0: expected a number from 0 to 1",
        ("algorithm=ring", "algorithm.share=much"): "algorithm.share=much: expected a number",
        ("algorithm=ring", "algorithm.shares=2"): "algorithm.share",
        ("algorithm=gossip",): "workers=1: gossip needs somebody to talk to",
        ("algorithm.strategy=gossi",): "algorithm.strategy=gossi: Did you mean gossip?",
        ("algorithm=ring", "launch=local", "launch.processes=2"): "algorithm.strategy=gossip runs in one process",
    }
    commands = [("train", "task=moons", *words) for words in refused]
    *said, page = typed_in_turn(full, *commands, ("train", "task=moons", "algorithm=ring", "--help"), cwd=tmp_path)
    for done, words in zip(said, refused.values(), strict=True):
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "share of the next worker's weights" in page.stdout
    assert "what the peers' logits are divided by" not in page.stdout


def test_its_parts_are_completed_and_its_options_tell_systems_apart(bare: Path) -> None:
    code = "from odist.cli.completion import candidates\nfrom odist.config.folder import config_folders\n"
    code += "for word in ('algorithm.share', 'algorithm=g', 'exchange=r'):\n"
    code += "    print(candidates(word, folders=config_folders()))\n"
    code += "from odist.config.systems import system_differences\n"
    code += "parts = [{'strategy': 'gossip', 'share': share} for share in (0.1, 0.2)] + [{'strategy': 'gossip'}]\n"
    code += "print(system_differences([{'algorithm': part} for part in parts]))"
    path = os.pathsep.join([str(bare), str(ROOT)])
    shown = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert shown.stdout.splitlines() == [
        "['algorithm.share=', 'algorithm.share=VALUE']",
        "['algorithm=gossip']",
        "['exchange=rounded']",
        "{'algorithm.share': [0.1, 0.2, 0.5]}",
    ]


def test_a_row_of_its_own_names_its_strategy(full: Path, tmp_path: Path) -> None:
    [done] = typed_in_turn(full, ("train", *TYPED, "algorithm=ring", "run.dir=run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["workers"], config["algorithm"]["share"]) == (4, 0.25)
    config["task"], config["model"] = {"name": "criteo"}, {"name": "mlp"}  # so that the strategy alone is missing
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    evaluated, listed = typed_in_turn(tmp_path / "nowhere", ("eval", "run"), ("runs", "."), cwd=tmp_path)
    assert (evaluated.returncode, "algorithm.strategy=gossip" in evaluated.stderr) == (2, True), evaluated.stderr
    assert listed.returncode == 0, listed.stderr


def test_an_option_with_the_name_of_a_key_is_refused(tmp_path: Path) -> None:
    site = install(tmp_path / "site", conf=False)
    source = (site / "moons_parts.py").read_text()
    (site / "moons_parts.py").write_text(source.replace("        share: float", "        label_weight: float"))
    chosen, other = typed_in_turn(
        site,
        ("train", "task=moons", "algorithm.strategy=gossip", "scale=smoke"),
        ("train", "--cfg", "job"),
        cwd=tmp_path,
    )
    assert chosen.returncode == 2
    assert "the option label_weight of 'gossip' has the name of another key below algorithm" in chosen.stderr
    assert other.returncode == 0, other.stderr


def test_its_folder_of_choices_is_found_without_a_flag(full: Path, tmp_path: Path) -> None:
    typed = ("task=moons", "algorithm=trio", "run.dir=run", "run.progress=false")
    done = odist(full, "train", *typed, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["num_groups"], config["algorithm"]["name"]) == (3, "trio")
    assert (config["train"]["batch"], config["train"]["passes"]) == (16, 2.0)


def test_a_run_of_a_package_that_is_gone_is_named(bare: Path, tmp_path: Path) -> None:
    assert odist(bare, "train", "task=moons", "scale=smoke", "run.dir=run", cwd=tmp_path).returncode == 0
    gone = odist(tmp_path / "nowhere", "eval", "run", cwd=tmp_path)
    assert gone.returncode == 2
    assert "task.name=moons" in gone.stderr
    assert odist(tmp_path / "nowhere", "runs", ".", cwd=tmp_path).returncode == 0
