"""Teachers in bfloat16 and in 8 bits, with batch norms folded, and teachers that keep the likeliest classes alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from conftest import make_config, odist, weight_hashes
from torch import Tensor, nn

from odist import products
from odist.config.schema import Config
from odist.engine.problem import build_model, build_task
from odist.errors import UserError
from odist.losses import LossOptions, Soft, multiclass
from odist.mesh import Mesh
from odist.products import Int8Matrix, quantised
from odist.run.folder import Run
from odist.tasks.base import Batch, Task
from odist.teachers.base import Panel
from odist.teachers.kept import Kept, pack, unpack
from odist.teachers.precision import Folded, fold_batch_norms

MODELS = {
    "mlp": ["task=criteo", "model.hidden=[64,48]"],
    "resnet": ["task=imagenet"],
    "wrn": ["task=imagenet", "model=wrn"],
    "lstm": ["task=lm", "task.unroll=8"],
    "transformer": ["task=lm", "model=transformer"],
}


def problem(name: str) -> tuple[Config, Task, nn.Module, Batch]:
    """A task, a model away from its start, with statistics that are no longer 0 and 1, and a batch."""
    config = make_config(*MODELS[name])
    task = build_task(config)
    model = build_model(config, task, group=0).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.2 * torch.rand_like(buffer))
    order = task.order(group=0, num_groups=1, examples_per_step=8, seed=0)
    return config, task, model, task.batch(order.ids(0), "train").to("cpu")


def taught(task: Task, model: nn.Module, batch: Batch, **options: object) -> Tensor:
    panel = Panel(task.forward, batches=lambda step: [batch], lookahead=1, num_steps=9, mesh=Mesh(), **options)  # type: ignore[arg-type]
    panel.place(1, copy.deepcopy(model), step=0)
    soft = panel.predict(0, 0, batch)
    assert soft is not None
    return soft.values[0]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["mlp", "lstm", "transformer"])
def test_a_cheap_teacher_predicts_nearly_the_same_and_is_not_the_same(name: str, precision: str) -> None:
    _, task, model, batch = problem(name)
    exact, cheap = taught(task, model, batch), taught(task, model, batch, precision=precision)
    assert cheap.dtype == torch.float32
    assert 0 < (cheap - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", ["resnet", "wrn"])
def test_a_folded_batch_norm_is_that_of_eval_mode(name: str) -> None:
    _, task, model, batch = problem(name)
    folded = copy.deepcopy(model)
    fold_batch_norms(folded)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    gone = sum(isinstance(module, Folded) for module in folded.modules())
    assert gone == norms if name == "resnet" else 0 < gone < norms  # a norm before its convolution stays
    with torch.no_grad():
        exact, _ = task.forward(model, batch, None)
        found, _ = task.forward(folded, batch, None)
    assert torch.allclose(found, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    rounded = taught(task, model, batch, precision="bf16")
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
    with pytest.raises(UserError, match=r"int8: the work of this model is in convolutions.*teacher_precision=bf16"):
        taught(task, model, batch, precision="int8")


def test_products_of_8_bit_matrices_are_those_of_whole_numbers() -> None:
    torch.manual_seed(0)
    rows, matrix, bias = 3 * torch.randn(7, 40), torch.randn(48, 40), torch.randn(48)
    left, left_scales = quantised(rows)
    right, right_scales = quantised(matrix)
    exact = left.double() @ right.double().t() * left_scales.double()[:, None] * right_scales.double()  # int8 by hand
    cheap = Int8Matrix.of(matrix)
    assert torch.allclose(nn.functional.linear(rows, cheap).double(), exact, rtol=1e-6)
    assert torch.allclose(nn.functional.linear(rows, cheap, bias).double(), exact + bias, rtol=1e-5, atol=1e-5)
    whole = right.float() * right_scales[:, None]
    some = torch.tensor([[3, 0], [47, 3]])
    assert torch.equal(nn.functional.embedding(some, cheap), whole[some])
    assert torch.equal(cheap + 1, whole + 1)  # anything but a product sees the float32 matrix
    assert float((whole - matrix).abs().max()) <= float(right_scales.max()) / 2 * 1.001
    alone = nn.functional.linear(rows[:1], cheap)
    assert torch.equal(alone, nn.functional.linear(torch.cat([rows[:1], 1000 * rows[1:]]), cheap)[:1])
    assert torch.equal(quantised(torch.zeros(2, 3))[0], torch.zeros(2, 3, dtype=torch.int8))


def test_weights_are_prepared_once_a_reload(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(
        products.Int8Matrix, "of", classmethod(lambda cls, matrix: (counted.append(1), cls(*quantised(matrix)))[1])
    )
    load = products._load
    monkeypatch.setitem(products.HANDLERS, torch.ops.aten.copy_.default, lambda *a: (counted.append(1), load(*a))[1])
    words = ("task=criteo", "algorithm=codistill", "model.hidden=[64,48]", "train.max_examples=1000")
    run = train(*words, "algorithm.teacher_precision=int8")
    swaps = sum(group["teacher_swaps"] for group in run.results["groups"])
    assert swaps == 2 * 4
    assert len(counted) == swaps * 2  # matrices; the output layer and the table stay as they are


@pytest.mark.parametrize(("name", "more"), [("mlp", "exchange.lookahead=3"), ("resnet", ""), ("lstm", "")])
def test_a_pair_trains_with_cheap_teachers_to_nearly_the_same_losses(
    train: Callable[..., Run], name: str, more: str
) -> None:
    words = (*MODELS[name], "algorithm=codistill", "train.max_examples=240", "train.batch=8", "train.log_every=80")
    words += ("algorithm.burn_in=16", "exchange.interval=48", "train.evaluate_every=0", *more.split())
    precisions = ("auto", "bf16") if name == "resnet" else ("auto", "int8", "bf16")
    runs = [train(*words, f"algorithm.teacher_precision={one}", name=one) for one in precisions]
    exact, *cheap = [run.metrics(kind="train")["distill_loss"].dropna().to_numpy() for run in runs]
    for one in cheap:
        assert one == pytest.approx(exact, rel=0.02)
    assert len({tuple(weight_hashes(run)) for run in runs}) == len(runs)


def dense(logits: Tensor, *, top_k: int, top_p: float, temperature: float) -> Tensor:
    """The soft target of one row by sorting and adding up, class by class."""
    likely = sorted(range(len(logits)), key=lambda place: -float(logits[place]))[:top_k]
    weights = [math.exp(float(logits[place]) / temperature) for place in likely]
    kept, share = [], 0.0
    for place, weight in zip(likely, weights, strict=True):
        if share < top_p:
            kept.append(place)
        share += weight / sum(weights)
    target = torch.zeros(len(logits), dtype=torch.float64)
    for place in kept:
        target[place] = math.exp(float(logits[place]) / temperature)
    return target / target.sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["cross_entropy", "kl"])
@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (None, 0.6), (8, 0.8), (50, None)])
def test_the_likeliest_classes_teach_as_the_whole_target_that_has_them_alone(
    top_k: int | None, top_p: float | None, kind: str, temperature: float
) -> None:
    torch.manual_seed(0)
    student, teachers = torch.randn(2, 5, 20, requires_grad=True), [2 * torch.randn(2, 5, 20) for _ in range(2)]
    targets, weights = torch.randint(20, (2, 5)), torch.rand(2, 5)
    kept = Kept(top_k, top_p, temperature)
    options = LossOptions(distill_weight=0.7, distill_loss=kind, temperature=temperature)
    cut = [kept(logits) for logits in teachers]
    sums = multiclass(student, targets, weights=weights, options=options, soft=Soft(tuple(cut)))
    (gradient,) = torch.autograd.grad(sums.total, student)
    each = [
        torch.stack(
            [dense(row, top_k=top_k or 20, top_p=top_p or 2.0, temperature=temperature) for row in one.flatten(0, 1)]
        )
        for one in teachers
    ]
    target = (sum(each) / 2).view(2, 5, 20)  # type: ignore[union-attr]
    whole = student.detach().double().requires_grad_()
    log_p = torch.log_softmax(whole / temperature, dim=-1)
    loss = -(target * log_p).sum(dim=-1) + (torch.special.xlogy(target, target).sum(dim=-1) if kind == "kl" else 0)
    label = nn.functional.cross_entropy(whole.flatten(0, 1), targets.flatten(), reduction="none").view(2, 5)
    total = ((label + 0.7 * temperature**2 * loss) * weights).sum()
    assert float(sums.total.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    (expected,) = torch.autograd.grad(total, whole)
    assert torch.allclose(gradient.double(), expected, atol=1e-6)


def test_what_is_kept_travels_in_few_bytes() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 1000)
    for kept, numbers in ((Kept(top_k=5), 12 * 5), (Kept(top_p=0.3), None)):
        cut = kept(logits)
        content = pack(cut, cut=True)
        count = int(cut.isfinite().sum())
        assert numbers in (None, count)
        assert len(content) == 4 * (12 + 2 * count)
        assert torch.equal(unpack(content, like=logits, cut=True), cut)
    assert torch.equal(unpack(pack(logits, cut=False), like=logits, cut=False), logits)


def test_what_cannot_be_cut_or_made_cheap_is_said(tmp_path) -> None:
    pair = ("train", "scale=smoke", "algorithm=codistill", "run.dir=run")
    for words, said in (
        (("algorithm.top_k=4",), "predicts one number"),
        (("task=lm", "algorithm.top_k=4", "algorithm.average=logits"), "no mean of logits"),
        (("task=lm", "algorithm.top_p=0.9", "algorithm.distill_loss=squared_logits"), "have no logits"),
        (("algorithm.top_p=1.5",), "algorithm.top_p=1.5"),
        (("train.precision=bf16", "algorithm.teacher_precision=fp32"), "casts its teachers"),
        (("task=imagenet", "algorithm.teacher_precision=int8"), "teacher_precision=bf16"),
    ):
        done = odist(*pair, *words, cwd=tmp_path)
        assert (done.returncode, (tmp_path / "run").exists()) == (2, False), (words, done.stderr)
        assert said in done.stderr
