"""A lock-step run whose exchange is gone: the same command goes on, to the same bits, or says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import compose, weight_hashes

from odist.config.read import load
from odist.errors import Interrupted, UserError
from odist.launch import processes, worker
from odist.run.folder import Run, step_name

SMALL = ("algorithm=codistill", "exchange=store", "model.hidden=[16]", "model.embedding_dim=4", "train.evaluate_every=0",
         "train.max_examples=4000", "task.synthetic.rows=4000", "task.synthetic.validation_rows=500", "train.batch=50",
         "algorithm.burn_in=100", "exchange.interval=200", "train.checkpoint_every=1000", "exchange.timeout=20")  # fmt: skip


@pytest.fixture
def create(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str, *overrides: str) -> Run:
        return Run.create(tmp_path / name, compose(*SMALL, *overrides), overrides=[], env={"run_id": name})

    return make


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Hashes of the weights of an undisturbed run in one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    whole = Run.create(folder, compose(*SMALL, "exchange=memory"), overrides=[], env={})
    worker.main(whole)
    return weight_hashes(whole)


def finish(run: Run, *, stop: Callable[[], bool] = lambda: False) -> Run:
    processes.train(run, load(run.path / "config.yaml"), stop=stop)
    worker.combine(run)
    return run


def lose(run: Run, how: str) -> None:
    if how == "removed":
        shutil.rmtree(run.path / "exchange")
    else:
        for path in (run.path / "exchange").rglob("*.safetensors"):
            path.write_bytes(b"")


def reached(run: Run, step: int) -> bool:
    return all(max(run.checkpoint_steps(group), default=0) >= step for group in range(2))


@pytest.mark.parametrize(("how", "lag"), [("removed", 0), ("emptied", 1)])
def test_a_stopped_run_goes_on_without_its_exchange(
    create: Callable[..., Run], bits: list[str], how: str, lag: int
) -> None:
    if lag:
        whole = create("whole", f"exchange.lag={lag}", "exchange=memory")
        worker.main(whole)
        bits = weight_hashes(whole)
    run = create("run", f"exchange.lag={lag}", "launch=local")
    with pytest.raises(Interrupted):
        finish(run, stop=lambda: reached(run, 20))
    lose(run, how)
    assert weight_hashes(finish(run)) == bits


def test_groups_far_apart_go_back_to_what_all_have_saved(
    create: Callable[..., Run], bits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between the checkpoints of two groups, and a reboot that clears the store."""
    run = create("run", "launch=local", "train.keep_checkpoints=9")
    with pytest.raises(Interrupted):
        finish(run, stop=lambda: reached(run, 40))
    for step in run.checkpoint_steps(1):
        if step >= 40:
            shutil.rmtree(run.checkpoint_root(1) / step_name(step))
    lose(run, "removed")
    assert weight_hashes(finish(run)) == bits
    assert "all groups go back to step 20" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_group_publishes_for_one_that_is_not(create: Callable[..., Run], bits: list[str]) -> None:
    run = create("run", "launch=local", "train.keep_checkpoints=9")
    finish(run)
    run.group_results(1).unlink()  # as if it had been killed before its end
    shutil.rmtree(run.checkpoint_root(1) / step_name(80))
    lose(run, "removed")
    assert weight_hashes(finish(run)) == bits


def test_what_cannot_go_on_says_what_to_remove(create: Callable[..., Run], bits: list[str]) -> None:
    run = create("run", "launch=local")
    with pytest.raises(Interrupted):
        finish(run, stop=lambda: reached(run, 20))
    shutil.rmtree(run.checkpoint_root(1))
    lose(run, "removed")
    with pytest.raises(
        UserError, match=rf"steps? .* no longer there.*saved after steps \d+, 0.*remove {run.path}/checkpoints"
    ):
        finish(run)
    shutil.rmtree(run.path / "checkpoints")
    assert weight_hashes(finish(run)) == bits


@pytest.mark.slow
def test_an_exchange_that_is_whole_is_left_alone(create: Callable[..., Run], bits: list[str]) -> None:
    """Groups far apart read from it what lies between them."""
    run = create("run", "launch=local", "train.keep_checkpoints=9")
    with pytest.raises(Interrupted):
        finish(run, stop=lambda: reached(run, 60))
    for step in run.checkpoint_steps(1):
        if step >= 60:
            shutil.rmtree(run.checkpoint_root(1) / step_name(step))
    kept = run.checkpoint_steps(0)
    with pytest.raises(Interrupted):
        finish(run, stop=lambda: True)
    assert run.checkpoint_steps(0)[: len(kept)] == kept
    assert weight_hashes(finish(run)) == bits
