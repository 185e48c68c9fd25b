"""Wide residual networks: the published sizes, a forward written out by hand, the start, and a real training."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import make_config, weight_hashes
from torch import Tensor

from odist.errors import UserError
from odist.launch.check import validate
from odist.models.wide_resnet import WideResNet

# Zagoruyko and Komodakis 2016, tables 3 and 4: depth, width, millions of parameters (of ten classes).
PUBLISHED = [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (40, 8, 35.7), (28, 10, 36.5), (28, 12, 52.5), (22, 8, 17.2),
             (22, 10, 26.8), (16, 8, 11.0), (16, 10, 17.1)]  # fmt: skip


@pytest.mark.parametrize(("depth", "width", "millions"), PUBLISHED)
def test_the_published_sizes(depth: int, width: int, millions: float) -> None:
    with torch.device("meta"):
        model = WideResNet(10, depth=depth, width=width)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


def reference(model: WideResNet, images: Tensor) -> Tensor:
    """The forward in eval mode from the weights alone: batch norm, ReLU, convolution, twice, and a shortcut (figure 1d)."""
    state = model.state_dict()

    def active(values: Tensor, name: str) -> Tensor:
        mean, variance, gain, bias = (
            state[f"{name}.{kind}"].view(1, -1, 1, 1) for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return ((values - mean) / (variance + 1e-5).sqrt() * gain + bias).clamp(min=0)

    values = F.conv2d(images, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for number in range(sum(name.startswith(f"layer{stage}.") and name.endswith("conv1.weight") for name in state)):
            name, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            before = active(values, f"{name}.bn1")
            inner = F.conv2d(before, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(active(inner, f"{name}.bn2"), state[f"{name}.conv2.weight"], padding=1)
            if f"{name}.shortcut.weight" in state:
                values = F.conv2d(before, state[f"{name}.shortcut.weight"], stride=stride)
            values = values + inner
    return active(values, "bn1").mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_forward_is_that_of_the_paper(channels_last: bool) -> None:
    torch.manual_seed(0)
    model = WideResNet(7, depth=16, width=2, dropout=0.3, channels_last=channels_last).double().eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    images = torch.randn(3, 3, 32, 24, dtype=torch.float64)
    found = model(images)
    torch.testing.assert_close(found, reference(model, images))
    assert found.shape == (3, 7)
    assert float(found.detach().std()) > 0.01


def test_dropout_acts_between_the_convolutions_and_in_training_only() -> None:
    torch.manual_seed(0)
    model, images = WideResNet(10, depth=10, width=1, dropout=0.5), torch.randn(4, 3, 32, 32)
    state = copy.deepcopy(model.state_dict())
    first = model(images)
    model.load_state_dict(state)
    assert not torch.equal(model(images), first)
    model.eval()
    assert torch.equal(model(images), model(images))


def test_a_depth_that_cannot_be_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Type model\.depth=28"):
        WideResNet(10, depth=27, width=1)


def test_the_sizes_of_the_scales() -> None:
    sizes = {scale: make_config("task=imagenet", "model=wrn", f"scale={scale}").model for scale in ("smoke", "paper")}
    assert [(size.depth, size.width) for size in sizes.values()] == [(10, 1), (28, 10)]
    validate(make_config("task=imagenet", "model=wrn"))
    with pytest.raises(UserError, match="cannot learn"):
        validate(make_config("task=lm", "model=wrn"))


def test_a_wide_network_trains_and_teaches(train) -> None:
    quick = ("task=imagenet", "model=wrn", "task.size=8", "task.synthetic.rows=80", "task.synthetic.validation_rows=30",
             "train.batch=8", "train.evaluate_every=0", "algorithm.burn_in=24", "exchange.interval=16")  # fmt: skip
    run = train(*quick, "algorithm=codistill", "model.dropout=0.3")
    assert len(set(weight_hashes(run))) == 2
    assert run.results["metrics"]["cross_entropy"] > 0
    assert run.results["groups"][0]["taught"]
