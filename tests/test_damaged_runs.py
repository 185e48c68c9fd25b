"""Damaged run folders: one sentence with the file and the cure, an older checkpoint where there is one, never a traceback.

Every case damages a copy of one run that was killed near its end, or of one that is finished, and types commands.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Typed, odist, weight_hashes
from safetensors.torch import load_file, save_file

from odist.errors import Interrupted, UserError
from odist.run.folder import Run

COMMAND = ["train", "scale=smoke", "run.progress=false", "model.hidden=[16]", "model.embedding_dim=4", "algorithm=codistill",
           "train.max_examples=1600", "algorithm.burn_in=200", "exchange.interval=200", "train.checkpoint_every=300",
           "train.keep_checkpoints=3"]  # fmt: skip
NEWEST, OLDER = "step-0000000030", "step-0000000024"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, `whole`, which no test changes."""
    home = tmp_path_factory.mktemp("finished")
    done = odist(*COMMAND, "run.dir=whole", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "whole"


@pytest.fixture
def whole(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def killed(whole: Path) -> Path:
    """The run as a kill after step 30 of 32 leaves it, with checkpoints of steps 24 and 30."""
    run = Run(whole)
    for group in range(2):
        shutil.rmtree(run.checkpoint_root(group) / "step-0000000032")
        assert run.checkpoint_steps(group) == [24, 30]
    shutil.rmtree(whole / "predictions")
    (whole / "results.json").unlink()
    run.set_status(state="running", step=30)
    return whole


def again(path: Path, *more: str) -> Typed:
    return odist(*COMMAND, *more, f"run.dir={path}", cwd=path.parent)


def refused(done: Typed, *said: str, code: int = 2) -> None:
    """One short message that holds all of `said` and no advice to unpickle."""
    assert done.returncode == code, done.stdout + done.stderr
    for words in said:
        assert words in done.stderr, done.stderr
    assert "weights_only" not in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


def flip(path: Path, *, bit: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    bit = 8 * (len(content) * 3 // 4) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 3)


def wrong_type(path: Path) -> None:
    path.write_text("[1, 2]\n")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


def python_tag(path: Path) -> None:
    path.write_text("!!python/object/apply:os.system ['touch /tmp/never']\n")


def other_keys(path: Path) -> None:
    """Another state in a checkpoint without digests, as an older odist made them."""
    torch.save({"step": 30, "weights": torch.zeros(3)}, path)
    (path.parent / "digest.json").unlink()


def without_digest(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        damage(path)
        (path.parent / "digest.json").unlink()

    return act


CHECKPOINT = {
    "a flipped bit in the weights": ("model.safetensors", flip),
    "a flipped bit in the state": ("state.pt", flip),
    "weights cut off, older odist": ("model.safetensors", without_digest(cut)),
    "empty weights, older odist": ("model.safetensors", without_digest(empty)),
    "an empty state, older odist": ("state.pt", without_digest(empty)),
    "binary state, older odist": ("state.pt", without_digest(binary)),
    "a state with other keys, older odist": ("state.pt", other_keys),
    "a folder in place of the weights": ("model.safetensors", folder),
    "no state": ("state.pt", gone),
}


@pytest.mark.parametrize("name", CHECKPOINT)
def test_training_goes_back_to_the_newest_sound_checkpoint(killed: Path, finished: Path, name: str) -> None:
    file, damage = CHECKPOINT[name]
    path = Run(killed).checkpoint_root(1) / NEWEST / file
    damage(path)
    done = again(killed)
    assert done.returncode == 0, done.stderr
    assert f"note: {path}: " in done.stderr
    assert f"Set aside as .damaged-{NEWEST}" in done.stderr
    assert "weights_only" not in done.stderr
    assert weight_hashes(Run(killed)) == weight_hashes(Run(finished))
    assert (path.parent.parent / f".damaged-{NEWEST}").is_dir()  # neither training nor the next start deletes it


def test_without_an_older_checkpoint_nothing_is_lost_and_the_cure_is_said(killed: Path) -> None:
    run = Run(killed)
    for group in range(2):
        shutil.rmtree(run.checkpoint_root(group) / OLDER)
    path = run.checkpoint_root(0) / NEWEST / "model.safetensors"
    before = path.read_bytes()
    flip(path)
    refused(again(killed), f"error: {path}: damaged", "from a copy", f"remove {killed}")
    path.write_bytes(before)
    assert again(killed).returncode == 0


def test_checkpoints_of_an_older_odist_are_continued(killed: Path, finished: Path) -> None:
    for path in killed.glob("checkpoints/*/*/digest.json"):
        path.unlink()
    done = again(killed)
    assert done.returncode == 0
    assert "note" not in done.stderr
    assert weight_hashes(Run(killed)) == weight_hashes(Run(finished))


def test_every_flipped_bit_of_a_checkpoint_is_noticed(whole: Path) -> None:
    from odist.engine import checkpoint

    root = Run(whole).checkpoint_root(0) / "step-0000000032"
    chance = random.Random(0)
    for number in range(60):
        path = root / ("model.safetensors", "state.pt")[number % 2]
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit=bit)
        with pytest.raises(UserError, match="content is not what was written"):
            checkpoint.newest_sound(only(whole, 32), [0], say=print)
        flip(path, bit=bit)
    assert checkpoint.newest_sound(only(whole, 32), [0], say=print) == 32


def only(path: Path, step: int) -> Run:
    """The run with no other checkpoints than those of one step."""
    run = Run(path)
    for group in range(2):
        for other in run.checkpoint_steps(group):
            if other != step:
                shutil.rmtree(run.checkpoint_root(group) / f"step-{other:010d}")
    return run


def test_a_group_in_its_own_process_goes_back_alone_and_its_peer_still_has_what_it_needs(
    train: Callable[..., Run], capfd: pytest.CaptureFixture[str]
) -> None:
    keys = [*(word for word in COMMAND[3:] if "max_examples" not in word), "exchange.lag=1", "train.passes=8"]
    whole = train(*keys, name="whole")
    apart = [*keys, "launch=local"]

    def far() -> bool:
        run = Run(whole.path.with_name("apart"))
        return all(len(run.checkpoint_steps(group)) == 3 for group in range(2))

    with pytest.raises(Interrupted):
        train(*apart, name="apart", stop=far)
    run = Run(whole.path.with_name("apart"))
    damaged = [run.checkpoint_root(0) / f"step-{step:010d}" for step in run.checkpoint_steps(0)[1:]]
    for folder in damaged:
        flip(folder / "model.safetensors")
    capfd.readouterr()
    assert weight_hashes(train(*apart, name="apart")) == weight_hashes(whole)
    said = capfd.readouterr().err
    for folder in damaged:  # the note came from the log of the group's process
        assert f"note: {folder / 'model.safetensors'}: damaged" in said
        assert folder.with_name(f".damaged-{folder.name}").is_dir()


RECORDS = {
    "an empty status": ("status.json", empty),
    "a status cut off": ("status.json", cut),
    "a status of another type": ("status.json", wrong_type),
    "a binary status": ("status.json", binary),
    "a folder in place of the status": ("status.json", folder),
    "no status": ("status.json", gone),
    "a horizon cut off": ("horizon.json", cut),
    "env.json cut off": ("env.json", cut),
    "no env.json": ("env.json", gone),
    "env.json of another type": ("env.json", wrong_type),
    "a binary configuration": ("config.yaml", binary),
    "an empty configuration": ("config.yaml", empty),
    "a configuration with a tag": ("config.yaml", python_tag),
    "no configuration": ("config.yaml", gone),
    "binary metrics": ("metrics.jsonl", binary),
    "a folder in place of the metrics": ("metrics.jsonl", folder),
}


@pytest.mark.parametrize("name", RECORDS)
def test_training_mends_the_records(killed: Path, finished: Path, name: str) -> None:
    file, damage = RECORDS[name]
    damage(killed / file)
    done = again(killed)
    assert done.returncode == 0, done.stderr
    if name != "no status":
        assert f"note: {killed / file}" in done.stderr
    assert "another version" not in done.stderr
    assert weight_hashes(Run(killed)) == weight_hashes(Run(finished))
    Run(killed).check()
    for kept in ("run_id", "config_hash", "source_hash", "data_fingerprint"):
        assert Run(killed).env[kept] == Run(finished).env[kept]
    assert Run(killed).config["train"] == Run(finished).config["train"]
    if damage not in (gone,):
        assert os.path.lexists(killed / f".damaged-{file}")


def test_a_damaged_configuration_is_not_replaced_by_another(killed: Path) -> None:
    binary(killed / "config.yaml")
    refused(again(killed, "optim.lr=0.5"), str(killed / "config.yaml"), "overrides.txt")
    assert (killed / "config.yaml").read_bytes() == bytes(range(256)) * 3


def test_without_any_copy_of_env_json_the_run_is_not_continued(killed: Path) -> None:
    for path in [killed / "env.json", *killed.glob("checkpoints/*/*/digest.json")]:
        path.unlink()
    refused(again(killed), str(killed / "env.json"), "from a copy", f"remove {killed}")


RESULTS = {
    "results cut off": ("results.json", cut),
    "results of another type": ("results.json", wrong_type),
    "no results": ("results.json", gone),
    "predictions cut off": ("predictions/validation/group-0.npy", cut),
    "empty predictions": ("predictions/validation/group-0.npy", empty),
    "binary targets": ("predictions/validation/targets.npy", binary),
    "a folder in place of the predictions": ("predictions/validation/group-0.npy", folder),
    "the record of the predictions empty": ("predictions/validation/meta.json", empty),
}


@pytest.mark.parametrize("name", RESULTS)
def test_damaged_results_are_named_and_made_again(whole: Path, finished: Path, name: str) -> None:
    file, damage = RESULTS[name]
    damage(whole / file)
    if file.startswith("predictions"):
        refused(odist("churn", whole, finished, cwd=whole.parent), str(whole / file), "odist train")
    done = again(whole)
    assert done.returncode == 0, done.stderr
    assert "finished already" not in done.stdout
    assert Run(whole).results == {**Run(finished).results, "seconds": Run(whole).results["seconds"],
                                  "groups": Run(whole).results["groups"]}  # fmt: skip
    assert weight_hashes(Run(whole)) == weight_hashes(Run(finished))
    assert (Run(whole).predictions().probabilities == Run(finished).predictions().probabilities).all()
    assert "finished already" in again(whole).stdout


@pytest.mark.parametrize("file", ["model.safetensors"])
def test_eval_and_teachers_refuse_weights_that_were_not_saved(whole: Path, file: str) -> None:
    path = Run(whole).checkpoint_root(0) / "step-0000000032" / file
    flip(path)
    refused(odist("eval", whole, cwd=whole.parent), str(path), "content is not what was written", "results stay valid")
    taught = [word for word in COMMAND if word != "algorithm=codistill"]
    taught = odist(*taught, "algorithm=distill", f"algorithm.teachers=[{whole}]", "run.dir=new", cwd=whole.parent)
    refused(taught, str(path), "content is not what was written")
    assert not (whole.parent / "new").exists()
    (path.parent / "digest.json").unlink()  # an older odist's: of its structure a flipped bit says nothing ...
    assert odist("eval", whole, cwd=whole.parent).returncode == 0
    cut(path)  # ... but this does
    refused(odist("eval", whole, cwd=whole.parent), str(path), "damaged")
    weights = {f"other.{name}": tensor for name, tensor in load_file(whole_weights(whole)).items()}
    save_file(weights, path)
    refused(odist("eval", whole, cwd=whole.parent), str(path), "other weights")


def whole_weights(path: Path) -> Path:
    return Run(path).checkpoint_root(1) / "step-0000000032" / "model.safetensors"


HARMFUL = {**RECORDS, "results cut off": ("results.json", cut), "results without metrics": ("results.json", wrong_type)}


@pytest.mark.parametrize("name", HARMFUL)
def test_one_damaged_run_breaks_neither_the_list_nor_the_figures_of_the_others(
    finished: Path, tmp_path: Path, name: str
) -> None:
    for copy in ("bad", "good"):
        shutil.copytree(finished, tmp_path / "runs" / copy)
    file, damage = HARMFUL[name]
    damage(tmp_path / "runs" / "bad" / file)
    listed = odist("runs", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    bad, good = json.loads(listed.stdout)
    assert (good["state"], good["problem"]) == ("finished", None)
    assert good["value"] == Run(finished).results["metrics"]["log_loss"]
    if file != "metrics.jsonl":  # the list does not read it
        assert bad["state"] == "damaged"
        assert f"bad/{file}" in bad["problem"]
        assert f"bad/{file}" in odist("runs", cwd=tmp_path).stdout.replace("\n", "")
    for sort in ("age", "metric", "algorithm", "state") if file == "status.json" else ():
        assert odist("runs", "--sort", sort, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("file", ["status.json", "config.yaml", "metrics.jsonl", "predictions/validation/group-0.npy"])
def test_figures_leave_a_damaged_run_out_and_say_so(finished: Path, tmp_path: Path, file: str) -> None:
    for copy in ("bad", "good"):
        shutil.copytree(finished, tmp_path / "runs" / copy)
    binary(tmp_path / "runs" / "bad" / file)
    done = odist("plot", "runs", "--metric", "log_loss", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"note: skipped: runs/bad/{file}" in done.stderr
    assert list((tmp_path / "plots").glob("*log_loss.png"))
    refused(odist("plot", "runs/bad", cwd=tmp_path), f"runs/bad/{file}", "nothing to plot")


def test_lines_of_metrics_that_are_none_spoil_no_other(finished: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished, tmp_path / "run"))
    rows, none = run.rows()
    assert none == 0
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(
            b'{"kind": "train"\n\xff\xfe\n[1]\n{"kind": 3, "group": 0, "step": 1}\n"a"\n' + b"[" * 100_000 + b"\n"
        )
    assert run.rows() == (rows, 6)
    assert len(run.metrics()) == len(Run(finished).metrics())


@pytest.mark.parametrize("pid", [10**30, -1, 0, "me"])
def test_a_status_with_an_impossible_process_holds_nobody_up(killed: Path, pid: object) -> None:
    run = Run(killed)
    status = json.loads((killed / "status.json").read_text())
    (killed / "status.json").write_text(json.dumps({**status, "pid": pid}))
    assert odist("runs", killed, cwd=killed.parent).returncode == 0
    assert again(killed).returncode == 0
    assert run.finished


def test_a_file_where_a_folder_belongs_is_named_and_no_file_stays_open(killed: Path) -> None:
    for name in ("logs", "checkpoints"):
        shutil.rmtree(killed / name)
        (killed / name).write_text("here was a folder")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ResourceWarning)
            refused(again(killed), str(killed / name))
            gc.collect()
        assert not [one for one in warned if str(killed) in str(one.message)]
        (killed / name).unlink()
    assert again(killed).returncode == 0


def test_a_run_folder_of_nobody_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "config.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="not a run folder"):
        Run.open(tmp_path / "papers")
    refused(odist("train", "run.dir=papers", cwd=tmp_path), "not a run folder")
