"""What is typed after `odist train`: the help page, words that other software uses, places that can be no run folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from test_cli import SMOKE, criteo_rows, odist, refused

from odist.config.identity import flatten
from odist.config.read import load
from odist.config.schema import Config
from odist.config.suggest import choose, unknown_key
from odist.errors import UserError

GROUPS = ("task", "algorithm", "data", "scale", "model", "optim", "exchange", "launch")

# The help page


def page(*words: str, columns: int, cwd: Path) -> str:
    done = odist("train", *words, "--help", cwd=cwd, columns=columns)
    assert done.returncode == 0, done.stderr
    assert not list(cwd.iterdir())
    assert max(map(len, done.stdout.splitlines())) <= columns
    return done.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_help_prints_every_key_of_the_task_with_its_value_and_meaning(columns: int, tmp_path: Path) -> None:
    from odist.config.read import schema_keys

    shown = page("task=lm", "seed=7", columns=columns, cwd=tmp_path)
    words = " ".join(shown.split())
    composed = yaml.safe_load(odist("train", "task=lm", "--cfg", "job", "--resolve", cwd=tmp_path).stdout)
    names = {name for name, _ in flatten(composed)} - {"scale"} - {f"{group}.name" for group in GROUPS}
    assert names == set(re.findall(r"^  ([a-z_.0-9]+)=", shown, re.M))
    assert re.search(r"^  seed=7 +seed of initialisation", shown, re.M)
    meanings = {
        found.name: found.key.meaning for found in schema_keys() if found.name.split(".")[0] not in ("task", "model")
    }
    for name in names & set(meanings):
        assert meanings[name] in words, name
    assert "task.unroll=" in shown
    assert "tokens of an example" in words
    assert "odist train task=lm --help" in words


def test_help_shows_choices_and_hides_what_nobody_may_set(tmp_path: Path) -> None:
    shown = page("algorithm=codistill", columns=80, cwd=tmp_path)
    assert not re.search(r"_schema|preset|^ *(rate|size):|smoke-|-small", shown, re.M)
    assert re.search(r"^  \* codistill +Codistillation$", shown, re.M)
    assert re.search(r"^    sync +Synchronous data-parallel training", shown, re.M)
    words = " ".join(shown.split())
    assert "lockstep (the agreed snapshot" in words  # choices of a key, each with its meaning
    assert re.search(r"algorithm\.burn_in=(\d+) examples before the teacher is heard \(here (\d+) steps\)", words)


def test_help_shows_choices_of_a_users_own_folder(tmp_path: Path) -> None:
    (tmp_path / "mine" / "algorithm").mkdir(parents=True)
    (tmp_path / "mine" / "algorithm" / "three.yaml").write_text(
        "# @package _global_\n# Three groups. Just for this test.\nnum_groups: 3\nalgorithm:\n  name: three\n"
    )
    done = odist("train", "--config-dir", "mine", "algorithm=three", "-m", "seed=1,2", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  \* three +Three groups$", done.stdout, re.M)
    assert re.search(r"^  num_groups=3 ", done.stdout, re.M)


# Words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optim.learning_rate=0.1"], ["no key optim.learning_rate", "Did you mean optim.lr?"]),
        (["batch_size=1"], ["Did you mean train.batch?"]),
        (["epochs=1"], ["Did you mean train.passes?"]),
        (["max_steps=1"], ["Did you mean train.max_examples?", "steps x train.batch x workers"]),
        (["gpu=1"], ["Did you mean launch.device?"]),
        (["launch.device=gpu"], ["Did you mean cuda?"]),
        (["--seed", "1"], ["Type seed=1"]),
        (["--learning-rate=0.1"], ["Type optim.lr=0.1"]),
        (["--nonsense"], ["no option --nonsense"]),
        (["--cfg"], ["--cfg", "job, hydra, all"]),
        (["--cfg", "jobs"], ["--cfg jobs", "job, hydra, all"]),
        (["--config-dir"], ["--config-dir"]),
        (["--multirun=1"], ["--multirun takes no value"]),
        (["--shell-completion"], ["--install-completion"]),
        (["seed=1", "scale=smoke", "seed=2"], ["seed=1 seed=2", "given twice"]),
        (["run.dir=s3://bucket/run"], ["run.dir=s3://bucket/run", "not a URL"]),
        (["run.dir=" + "x" * 300], ["run.dir=xxx", "longer than"]),
        (["run.dir=" + "/".join(["x" * 90] * 60)], ["run.dir=xxx", "longer than"]),
        (["-m", "seed=1,2", "run.dir=" + "x" * 300], ["run.dir=xxx", "longer than"]),
        (["run.dir=a\nb"], ["line break"]),
        (["--cfg", "job", "--package", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: value[0][:30] if value else "",
)
def test_what_train_answers_to_words_of_others(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    done = odist("train", *arguments, cwd=tmp_path)
    refused(done, *said)
    assert "usage:" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("flags", [[], ["-m", "seed=1,2"]], ids=["single", "multirun"])
def test_a_run_folder_at_or_below_a_file_is_refused(place: str, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(odist("train", *flags, "scale=smoke", f"run.dir={place}", cwd=tmp_path), "file is a file")
    assert (tmp_path / "file").read_text() == "mine"
    refused(odist("prepare", "criteo", "--input", "file", "--output", f"{place}/x", cwd=tmp_path), "file is a file")


def test_a_name_that_no_file_system_takes_is_refused_by_every_verb(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("1\t" * 39 + "1\n")
    name = "x" * 300
    for words in (["eval", name], ["runs", name], ["prepare", "criteo", "--input", "rows", "--output", name]):
        refused(odist(*words, cwd=tmp_path), "xxx", "long")


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = odist("train", "scale=smoke", "run.progress=false", "run.dir=~/mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "mine" / "results.json").is_file()
    assert not (tmp_path / "~").exists()
    refused(odist("train", "data=prepared", "data.path=~/none", cwd=tmp_path), f"{tmp_path}/home/none: no such folder")
    from odist.run.places import local_folder

    with pytest.raises(UserError, match="home folder"):
        local_folder("~nobody-of-this-name/x", key="run.dir")


def test_flags_may_stand_anywhere_and_keep_their_values() -> None:
    from odist.cli.train_arguments import read_arguments

    found = read_arguments(["seed=1,2", "-m", "--config-dir=mine", "scale=smoke", "--cfg", "job", "--info"])
    assert found.is_multirun
    assert found.words() == ["-m", "--config-dir", "mine", "--cfg", "job", "--info", "--", "seed=1,2", "scale=smoke"]
    assert read_arguments(["--info", "plugins", "seed=1"]).words() == ["--info", "plugins", "--", "seed=1"]
    assert read_arguments(["--info", "seed=1"]).words() == ["--info", "--", "seed=1"]


def test_a_quoted_folder_of_a_multirun_is_that_folder(tmp_path: Path) -> None:
    done = odist("train", "-m", *SMOKE, "run.dir='my runs'", "seed=1,2", "train.max_examples=50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["my runs"]
    assert len(list((tmp_path / "my runs").iterdir())) == 2


def test_every_synonym_names_a_key() -> None:
    from odist.config.read import schema_keys
    from odist.config.suggest import SYNONYMS

    names = {*(found.name for found in schema_keys()), *GROUPS}
    assert set(SYNONYMS.values()) <= names
    for word, key in SYNONYMS.items():
        assert word not in names
        assert f"Did you mean {key}?" in unknown_key(word, names)


def test_a_part_of_a_name_is_enough_for_a_suggestion() -> None:
    recipes = ["criteo_fig2b", "criteo_table1", "demo", "lm_fig2a"]
    assert choose("table1", recipes).startswith("Did you mean criteo_table1? ")
    assert choose("xyz", recipes).startswith("Choices: ")


def test_a_configuration_without_all_values_may_be_read_for_display() -> None:
    assert load({"seed": 3}, complete=False) == Config(seed=3)
    with pytest.raises(UserError, match="No value for scale"):
        load({"seed": 3})


def test_a_recipe_by_a_part_of_its_name(tmp_path: Path) -> None:
    refused(odist("reproduce", "table1", "--dry-run", cwd=tmp_path), "Did you mean criteo_table1?")


def test_the_number_of_processes_that_fits_is_typed_out(tmp_path: Path) -> None:
    words = ["launch=local", "workers=3", "launch.processes=2", "scale=smoke"]
    refused(odist("train", *words, cwd=tmp_path), "Choose launch.processes=3.")


# Automatic run folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store data/day one, and data/later, which has no training rows."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, like in (("day one", []), ("later", ["--like", "data/day one"])):
        rows = criteo_rows(folder / "rows.txt", rows=120, seed=len(like))
        made = odist(
            "prepare", "criteo", "--input", rows, "--output", f"data/{name}", "--buckets", "99", *like, cwd=folder
        )
        assert made.returncode == 0, made.stderr
    return folder


def test_automatic_folders_name_the_data_and_are_found_again(prepared: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(prepared, tmp_path / "work"))
    words = ["train", *SMOKE, "data=prepared", "data.path='data/day one'", "train.batch=20", "train.max_examples=40"]
    assert odist(*words, cwd=work).returncode == 0
    [folder] = (work / "runs").iterdir()
    assert re.fullmatch(r"criteo-day_one-sync-s0-[0-9a-f]{8}", folder.name)
    older = folder.with_name(folder.name.replace("day_one-", ""))
    folder.rename(older)  # as earlier versions called it
    done = odist(*words, cwd=work)
    assert f"runs/{older.name}: finished already" in done.stdout
    assert [path.name for path in (work / "runs").iterdir()] == [older.name]
    older.rename(folder)
    (work / "data" / "day one").rename(work / "data" / "moved")
    done = odist(*[word.replace("day one", "moved") for word in words], cwd=work)
    assert f"runs/{folder.name}: finished already" in done.stdout


def test_training_on_rows_for_evaluation_says_what_they_are_for(prepared: Path) -> None:
    done = odist("train", *SMOKE, "data=prepared", "data.path=data/later", "run.dir=runs/x", cwd=prepared)
    refused(done, "no training rows", "odist eval RUN --data")
    assert not (prepared / "runs" / "x").exists()


def test_a_differing_configuration_names_both_sides(tmp_path: Path) -> None:
    assert odist("train", *SMOKE, "run.dir=a", "train.max_examples=100", cwd=tmp_path).returncode == 0
    done = odist("train", *SMOKE, "run.dir=a", "train.max_examples=150", cwd=tmp_path)
    refused(done, "saved run -> this command", "train.max_examples: 100 -> 150")
