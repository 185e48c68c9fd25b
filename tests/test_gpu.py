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


@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_in_bf16_on_a_gpu_are_nearly_those_in_fp32_on_the_cpu(train: Callable[..., Run], name: str) -> None:
    here = train(*TASKS[name], *FEW_STEPS, name="cpu")
    there = train(*TASKS[name], *FEW_STEPS, "launch.device=auto", "train.precision=bf16", name="cuda")
    expected, found = weights_of(here), weights_of(there)
    assert {tensor.dtype for tensor in found.values()} == {tensor.dtype for tensor in expected.values()}
    for key in ("log_loss", "cross_entropy"):
        if key in here.results["metrics"]:
            assert there.results["metrics"][key] == pytest.approx(here.results["metrics"][key], rel=0.05)


@pytest.mark.parametrize("name", [*TASKS, "transformer"])
def test_a_compiled_model_computes_what_the_plain_one_does(name: str) -> None:
    from conftest import make_config

    from odist.engine.problem import build_model, build_task

    words = TASKS.get(name, ["task=lm", "model=transformer"])
    logits = []
    for compiled in ("false", "true"):
        config = make_config(*words, f"model.compile={compiled}", "launch.device=cuda")
        task = build_task(config)
        model = build_model(config, task, group=0).train()
        order = task.order(group=0, num_groups=1, examples_per_step=8, seed=0)
        batch = task.batch(order.ids(0), "train").staged("cuda:0").to("cuda:0")
        made, _ = task.forward(model, batch, None)
        task.loss(made, batch).total.backward()
        logits.append(made.detach())
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)


def test_images_are_normalised_on_a_gpu_to_the_same_bits() -> None:
    from odist.data.augment import normalise

    images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(normalise(images.cuda()).cpu(), normalise(images))


def test_gradients_are_clipped_on_a_gpu_as_on_the_cpu(train: Callable[..., Run]) -> None:
    words = [*TASKS["criteo"], "optim=sgd", "optim.lr=0.1", "optim.clip_norm=0.01"]
    here, there = train(*words, name="cpu"), train(*words, "launch.device=cuda", name="cuda")
    expected, found = weights_of(here), weights_of(there)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-2, atol=1e-4, msg=key)
