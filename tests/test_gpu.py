"""What a GPU computes, against the CPU: the same steps to rounding, and runs that move from one to the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from odist.engine import checkpoint
from odist.engine.evaluation import evaluate
from odist.run.folder import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: torch.cuda.is_available() is false here"),
]
TASKS = {
    "criteo": ["task=criteo", "train.max_examples=200"],
    "imagenet": ["task=imagenet", "train.max_examples=64"],
    "lm": ["task=lm", "train.max_examples=64"],
}
FEW_STEPS = ["algorithm=codistill", "algorithm.burn_in=0", "exchange.interval=1", "optim.warmup=0"]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    step = checkpoint.common_step(run, range(1))
    assert step is not None
    return load_file(run.checkpoint_root(0) / f"step-{step:010d}" / checkpoint.WEIGHTS)


@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_on_a_gpu_are_those_on_the_cpu_and_are_evaluated_there(
    train: Callable[..., Run], name: str
) -> None:
    here = train(*TASKS[name], *FEW_STEPS, name="cpu")
    there = train(*TASKS[name], *FEW_STEPS, "launch.device=cuda", name="cuda")
    expected, found = weights_of(here), weights_of(there)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-2, atol=1e-3, msg=key)
    on_gpu, on_cpu = (evaluate(there, split="validation", device=device) for device in ("cuda", "cpu"))
    for key in ("log_loss", "cross_entropy"):
        if key in on_gpu:
            assert on_cpu[key] == pytest.approx(on_gpu[key], rel=1e-3)
            assert on_cpu[key] == pytest.approx(here.results["metrics"][key], rel=1e-2)


def test_a_run_on_a_gpu_is_stopped_and_continued(train: Callable[..., Run]) -> None:
    from conftest import StopAfter

    from odist.errors import Interrupted

    words = [*TASKS["criteo"], *FEW_STEPS, "launch.device=cuda"]
    whole = train(*words, name="whole")
    with pytest.raises(Interrupted):
        train(*words, name="broken", stop=StopAfter(2))
    broken = train(*words, name="broken")
    expected, found = weights_of(whole), weights_of(broken)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=key)
    assert broken.status["state"] == "finished"
