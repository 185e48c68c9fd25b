"""Residual networks: torchvision's layout, a forward written out by hand, the start, copies and memory formats."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odist.errors import UserError
from odist.models.resnet import ResNet

# Name and shape of every tensor of torchvision's resnet50, in its order: written from table 1 of He et al. 2016.
LAYOUT = Path(__file__).parent / "data" / "resnet50.json"
BLOCKS = {8: (1, 1, 1), 18: (2, 2, 2, 2), 20: (3, 3, 3), 32: (5, 5, 5), 50: (3, 4, 6, 3)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def network(depth: int, *, num_classes: int = 10, **options: bool) -> ResNet:
    """A network whose every tensor is random: at the start the blocks do nothing, their last gains being zero."""
    torch.manual_seed(0)
    model = ResNet(num_classes, depth=depth, **options)
    for name, tensor in model.state_dict().items():
        kind = name.rpartition(".")[2]
        if tensor.ndim == 1 and kind != "num_batches_tracked":
            low, high = (0.5, 1.5) if kind in ("weight", "running_var") else (-0.2, 0.2)
            tensor.uniform_(low, high)
    return model


def reference(state: dict[str, Tensor], images: Tensor, *, depth: int, training: bool) -> Tensor:
    """The network's forward from its weights alone, as the papers have it."""

    def normed(values: Tensor, name: str) -> Tensor:
        if training:
            mean, variance = values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3), unbiased=False)
        else:
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        shape = (1, -1, 1, 1)
        scaled = (values - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)

    def convolved(values: Tensor, name: str, stride: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(values, weight, stride=stride, padding=weight.shape[-1] // 2)

    large = depth in (18, 50)
    values = normed(convolved(images, "conv1", 2 if large else 1), "bn1").relu()
    if large:
        values = F.max_pool2d(values, 3, stride=2, padding=1)
    for stage, count in enumerate(BLOCKS[depth], start=1):
        for number in range(count):
            block = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            strides = (1, stride, 1) if depth == 50 else (stride, 1)  # of a bottleneck the 3x3 has it
            inner = values
            for place, own in enumerate(strides, start=1):
                inner = normed(convolved(inner, f"{block}.conv{place}", own), f"{block}.bn{place}")
                inner = inner.relu() if place < len(strides) else inner
            if f"{block}.downsample.0.weight" in state:
                values = normed(convolved(values, f"{block}.downsample.0", stride), f"{block}.downsample.1")
            values = (inner + values).relu()
    return values.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_resnet50_has_torchvisions_names_shapes_and_count() -> None:
    model = ResNet(1000, depth=50)
    assert [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()] == json.loads(LAYOUT.read_text())
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (20, 272_474 + 990 * 65), (8, 78_042 + 990 * 65)])
def test_the_other_depths_have_as_many_parameters_as_is_known(depth: int, parameters: int) -> None:
    """18: as published for torchvision's; 20 and 8: He et al. 2016, section 4.2, with projections, by hand below."""
    model = ResNet(1000, depth=depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    if depth == 18:
        return
    count, total, width_in = (depth - 2) // 6, 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10, 16
    for width in (16, 32, 64):
        total += 9 * width_in * width + (2 * count - 1) * 9 * width * width + 2 * count * 2 * width
        total += width_in * width + 2 * width if width != width_in else 0
        width_in = width
    assert total + 990 * 65 == parameters


def test_resnet32_without_its_projections_has_the_published_count() -> None:
    """He et al. 2016, table 6: 0.46 million, where shortcuts widen by zeros."""
    model = ResNet(10, depth=32)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(count for name, count in counts.items() if "downsample" not in name) == 464_154
    assert sum(counts.values()) == 466_906


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth", sorted(BLOCKS))
def test_forward_is_that_of_the_papers(depth: int, training: bool, channels_last: bool) -> None:
    # Statistics of a few values amplify float32's rounding, so training is compared in float64.
    model = network(depth, channels_last=channels_last).train(training).to(torch.float64 if training else torch.float32)
    images = torch.randn(3, 3, 96 if depth in (18, 50) else 32, 64 if depth in (18, 50) else 32)
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    expected = reference(weights, images.double(), depth=depth, training=training)
    with torch.no_grad():
        found = model(images.to(model.fc.weight.dtype))
    assert float(expected.std()) > 0.01
    assert float((found - expected).abs().max()) < (1e-9 if training else 1e-5) * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("depth", sorted(BLOCKS))
def test_the_start(depth: int) -> None:
    """Convolutions normal by fan-out, last gain of each block zero, last layer normal 0.01 (Goyal et al. 2017, 5.1)."""
    torch.manual_seed(1)
    model = ResNet(1000, depth=depth)
    last = "bn3" if depth == 50 else "bn2"
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            spread = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors
            assert float(module.weight.detach().std()) / expected == pytest.approx(1, abs=spread), name
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.unique().tolist() == [0.0 if name.endswith(f".{last}") else 1.0], name
    assert float(model.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not model.fc.bias.any()


def test_a_state_dict_of_torchvisions_layout_loads() -> None:
    made = torch.Generator().manual_seed(3)
    state = {name: torch.rand(shape, generator=made) if shape or "tracked" not in name else torch.tensor(7)
             for name, shape in json.loads(LAYOUT.read_text())}  # fmt: skip
    model = ResNet(1000, depth=50)
    model.load_state_dict(state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_dropout_acts_before_the_last_layer_and_in_training_only() -> None:
    torch.manual_seed(0)
    model = ResNet(10, depth=8, dropout=0.5)
    images = torch.randn(4, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_weights_and_their_gradients_are_in_the_asked_memory_format() -> None:
    model = ResNet(10, depth=8, channels_last=True)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for parameter in model.parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()


def test_bf16_rounds_the_products_and_keeps_weights_and_logits() -> None:
    model = network(8).train(False)
    rounded = ResNet(model.fc.out_features, depth=8, bf16=True, channels_last=True).train(False)
    rounded.load_state_dict(model.state_dict())
    images = torch.randn(4, 3, 32, 32)
    exact, found = model(images).detach(), rounded(images)
    assert found.dtype == torch.float32
    assert 1e-5 < float((found.detach() - exact).abs().max() / exact.abs().max()) < 0.05
    found.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in rounded.parameters()
    )


def test_a_compiled_network_keeps_its_names_and_so_does_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a teacher is: a deep copy, compiled as well."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    model = ResNet(10, depth=8, compile=True)
    other = copy.deepcopy(model)
    assert compiled == [model, other]
    assert list(other.state_dict()) == list(ResNet(10, depth=8).state_dict())
    assert compiled == [model, other]  # the third was not asked to


def test_an_unknown_depth_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"model\.depth=34: choose one of 8, 18, 20, 32, 50"):
        ResNet(10, depth=34)
