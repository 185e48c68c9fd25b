"""odist.Codistiller in loops of one's own: what is added to the loss, and what a peer can and cannot do to it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import odist
from odist.errors import UserError
from odist.losses import LossOptions, Soft, multiclass


def network(*, outputs: int = 3, hidden: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


Join = Callable[..., odist.Codistiller]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Join a codistillation in this test's folder, with a reload at every step and a look at the store all the time."""
    with ExitStack() as stack:

        def make(model: nn.Module, group: int, **options: Any) -> odist.Codistiller:
            known = {"every": 1, "poll": 0.005, "url": str(tmp_path / "pair"), **options}
            if "num_groups" not in known:
                known.setdefault("peers", [1 - group])
            return stack.enter_context(odist.Codistiller(model, group=group, **known))

        yield make


def eventually(question: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
    return answer


def hear(peer: odist.Codistiller, *, teachers: int = 1, **said: Any) -> None:
    """Take steps until so many teachers are in use, and the log says what is expected of it."""

    def arrived() -> bool:
        peer.step()
        log = peer.log()
        return log["num_teachers"] == teachers and all(log.get(name) == value for name, value in said.items())

    eventually(arrived)


def teacher_of(peer: odist.Codistiller, number: int) -> nn.Module:
    return peer.teacher.panel.models[number]


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def test_a_peer_in_a_folder_teaches_after_the_burn_in(join: Join) -> None:
    ours, theirs = network(seed=1), network(seed=2)
    logits = ours(X)
    peer, other = join(ours, 0, burn_in=3), join(theirs, 1)
    other.step()
    for _ in range(2):
        assert float(peer.loss(logits, X)) == 0
        peer.step()
    hear(peer)
    assert peer.log()["teacher_age_seconds"] >= 0
    expected = theirs.eval()(X).softmax(dim=-1)
    by_hand = -(expected * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    loss = peer.loss(logits, X)
    assert torch.allclose(loss, by_hand)
    (loss + F.cross_entropy(logits, torch.zeros(16, dtype=torch.int64))).backward()
    assert all(parameter.grad is None for parameter in teacher_of(peer, 1).parameters())
    assert not teacher_of(peer, 1).training


def test_without_a_peer_the_loss_is_zero_and_training_goes_on(join: Join) -> None:
    model = network()
    peer = join(model, 0)
    for _ in range(3):
        loss = F.cross_entropy(model(X), torch.zeros(16, dtype=torch.int64))
        total = loss + peer.loss(model(X), X)
        assert torch.equal(total, loss)
        total.backward()
        peer.step()
    assert peer.log()["num_teachers"] == 0
    assert peer.log()["teacher_age_seconds"] is None


class Tokens(nn.Module):
    """Logits of the next of VOCABULARY tokens."""

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(VOCABULARY, 8)
        self.output = nn.Linear(8, VOCABULARY)

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.output(self.table(ids))}


VOCABULARY = 1 << 17  # four rows are more than a chunk
IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def by_hand(predicts: str, outputs: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    if predicts == "classes":
        each = F.cross_entropy(outputs.flatten(0, -2), teacher.softmax(-1).flatten(0, -2), reduction="none")
        return (each * weights.flatten()).sum() / weights.sum()
    if predicts == "binary":
        each = F.binary_cross_entropy_with_logits(outputs, teacher.sigmoid(), reduction="none")
    else:
        each = (outputs - teacher) ** 2
    return (each * weights).sum() / weights.sum()


@pytest.mark.parametrize(("predicts", "outputs"), [("classes", 3), ("binary", 1), ("binary", 5), ("values", 2)])
def test_every_kind_of_prediction(join: Join, predicts: str, outputs: int) -> None:
    ours, theirs = network(outputs=outputs, seed=1), network(outputs=outputs, seed=2)
    peer, other = join(ours, 0, predicts=predicts, weight=0.5), join(theirs, 1, predicts=predicts)
    other.step()
    hear(peer)
    logits, rows = ours(X), torch.arange(16.0)
    expected = by_hand(
        predicts, logits, theirs.eval()(X), rows if predicts == "classes" else rows[:, None].expand(16, outputs)
    )
    torch.testing.assert_close(peer.loss(logits, X, weights=rows), 0.5 * expected)
    found = torch.autograd.grad(peer.loss(logits, X, weights=rows), logits)[0]
    torch.testing.assert_close(found, torch.autograd.grad(0.5 * expected, logits)[0])


def test_tokens_of_a_large_vocabulary_with_a_mask_and_a_forward_of_ones_own(join: Join) -> None:
    ours, theirs = Tokens(seed=1), Tokens(seed=2)

    def forward(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = model(ids, mask=mask)["logits"]
        return found

    peer, other = join(ours, 0, forward=forward), join(theirs, 1)
    other.step()
    hear(peer)
    logits = forward(ours, IDS, MASK)
    expected = by_hand("classes", logits, forward(theirs, IDS, MASK), MASK)
    torch.testing.assert_close(peer.loss(logits, IDS, MASK, weights=MASK), expected)
    labels = F.cross_entropy(logits.flatten(0, -2), IDS.flatten(), reduction="none")
    both = expected + (labels * MASK.flatten()).sum() / MASK.sum()
    torch.testing.assert_close(peer.loss(logits, IDS, MASK, weights=MASK, targets=IDS), both)
    half = logits.detach().bfloat16().requires_grad_()
    taught = peer.loss(half, IDS, MASK, weights=MASK)
    assert taught.dtype == torch.float32
    (gradient,) = torch.autograd.grad(taught, half)
    exact = torch.autograd.grad(expected, logits)[0]
    assert float((gradient.float() - exact).abs().max()) < 0.02 * float(exact.abs().max())
    assert float(peer.loss(logits, IDS, MASK, weights=torch.zeros_like(MASK)).detach()) == 0


@pytest.mark.parametrize("precision", ["auto", "bf16", "int8"])
def test_training_has_the_bits_of_the_trainer(
    train: Callable[..., Any], join: Join, tmp_path: Path, precision: str
) -> None:
    """A plain loop in the place of group 0 of a run hears group 1 through the files that the run has left."""
    from conftest import make_config
    from test_parity import SMALL, assert_equal_bits, plain_group, trained

    from odist.tasks.criteo import CriteoTask

    torch.set_num_threads(1)
    store, heard = tmp_path / "store", tmp_path / "heard"
    overrides = ("algorithm=codistill", "seed=5", "exchange=store", f"exchange.url={store}", *SMALL)
    if precision != "auto":
        overrides += (f"algorithm.teacher_precision={precision}", "model.hidden=[48,32]")
    run, config = train(*overrides), make_config(*overrides)
    task = CriteoTask(config)
    model, order, optimizers = plain_group(config, task, 0)
    (heard / "group-1").mkdir(parents=True)
    peer = join(
        model, 0, predicts="binary", every=2, burn_in=4, teacher_precision=precision, url=str(heard), run=json.loads(next(store.glob("*/*.json")).read_text())["run"]
    )  # fmt: skip
    for step in range(12):
        batch = task.batch(order.ids(step), "train")
        logits = model(*batch.inputs)
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum") / 50
        model.zero_grad()
        (loss + peer.loss(logits, *batch.inputs)).backward()
        for optimizer in optimizers:
            optimizer.step()
        done = step + 1
        for file in sorted((store / "group-1").glob(f"step-{done:010d}-*"), reverse=True):  # the manifest last
            (heard / "group-1" / file.name).write_bytes(file.read_bytes())
            if file.suffix == ".json":
                eventually(lambda done=done: (found := peer.exchange.fetch(1)) is not None and found.step == done)
        peer.step()
    assert peer.log()["teacher_swaps"] == 4  # after 4, 6, 8 and 10 steps
    assert_equal_bits(trained(run, config, 0), model.state_dict())


@pytest.mark.parametrize(("precision", "apart"), [("bf16", 0.02), ("int8", 0.05)])
def test_a_cheap_teacher_moves_the_student_alone_and_nearly_as_far(join: Join, precision: str, apart: float) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))
    other, ours = join(theirs, 1), copy.deepcopy(theirs)
    other.step()
    nn.init.normal_(ours[0].weight)
    peer = join(ours, 0, teacher_precision=precision)
    hear(peer)
    cheap = odist.Distiller(theirs, teacher_precision=precision)

    def found(teacher: odist.Codistiller | odist.Distiller) -> tuple[Tensor, Tensor]:
        ours.zero_grad()
        loss = teacher.loss(ours(X), X)
        loss.backward()
        return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in ours.parameters()])

    exact, exact_gradient = found(odist.Distiller(theirs, teacher_precision="fp32"))
    for teacher in (peer, cheap):
        loss, gradient = found(teacher)
        assert 0 < abs(loss - exact) < apart * exact
        assert 0 < (gradient - exact_gradient).norm() < apart * exact_gradient.norm()
        for model in teacher.teacher.panel.models.values():
            assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(found(peer)[1], found(cheap)[1])
    assert all(parameter.grad is None for parameter in theirs.parameters())
    assert theirs[2].weight.dtype == torch.float32


def test_options_that_no_teacher_has_are_refused(join: Join) -> None:
    for make in (
        lambda **options: join(network(), 0, **options),
        lambda **options: odist.Distiller(network(), **options),
    ):
        with pytest.raises(UserError, match=r"teacher_precision='half': choose 'auto', 'fp32', 'bf16', 'int8'"):
            make(teacher_precision="half")
        with pytest.raises(TypeError, match="unexpected keyword argument 'wieght': choose 'burn_in'"):
            make(wieght=1)


def test_labels_in_the_loss_have_the_bits_of_the_trainers_losses(join: Join) -> None:
    ours, theirs = network(seed=1), network(seed=2)
    peer, other = join(ours, 0), join(theirs, 1)
    other.step()
    hear(peer)
    labels = torch.arange(16) % 3
    for model in (ours, theirs):
        model.eval()
    gradients = []
    for loss in (
        lambda logits: peer.loss(logits, X, targets=labels),
        lambda logits: multiclass(
            logits, labels, weights=torch.ones(16), options=LossOptions(), soft=Soft((theirs(X).detach(),))
        ).total / 16,
    ):  # fmt: skip
        ours.zero_grad()
        loss(ours(X)).backward()
        gradients.append([parameter.grad.clone() for parameter in ours.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **manifest: Any) -> None:
    """Put a later snapshot into a group's folder: its first with other weights."""
    record = next(folder.glob("step-0000000001-*.json"))
    known = json.loads(record.read_text())
    weights = change(load_file(record.with_suffix(".safetensors")))
    known |= {"step": known["step"] + 1, **manifest}
    name = f"step-{known['step']:010d}-evil"
    save_file(weights, folder / f"{name}.safetensors")
    content = (folder / f"{name}.safetensors").read_bytes()
    known |= {"blob": f"{name}.safetensors", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / f"{name}.json").write_text(json.dumps(known))


def scaled(factor: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {
        name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }


def test_a_peer_that_misbehaves_costs_a_stale_teacher_and_no_error(join: Join, tmp_path: Path) -> None:
    ours, theirs = network(seed=1), network(seed=2)
    with join(theirs, 1) as other:
        other.step()
    peer = join(ours, 0)
    hear(peer)
    folder = tmp_path / "pair" / "group-1"
    (folder / "step-0000000009-torn.json").write_text('{"group": 1,')
    rewritten(folder, scaled(math.nan), step=2)
    rewritten(folder, lambda weights: {name: torch.zeros(7) for name in weights}, step=3)
    rewritten(folder, lambda weights: weights, step=4, run="another")
    kinds = {"not_a_manifest", "not_finite", "other_model", "other_run"}

    def rejected() -> bool:
        peer.step()
        return kinds <= set(peer.log().get("exchange_rejections", {}))

    eventually(rejected)
    log = peer.log()
    assert log["num_teachers"] == 1
    assert log["teacher_swaps"] == 1
    assert log["exchange_reason"]
    assert math.isfinite(peer.loss(ours(X), X).detach())
    for file in folder.glob("*-evil.*"):
        file.unlink()
    rewritten(folder, scaled(1e30), step=20)
    hear(peer, teacher_swaps=2)
    assert peer.loss(ours(X), X).detach() == 0  # what it predicts is not finite
    assert peer.log()["teacher_ignored"] == 1


def test_a_continued_training_hears_the_same_teachers(join: Join, tmp_path: Path) -> None:
    ours, theirs = network(seed=1), network(seed=2)
    peer, other = join(ours, 0, burn_in=1), join(theirs, 1)
    other.step()
    hear(peer)
    ours.eval()
    torch.save(peer.state_dict(), tmp_path / "state.pt")
    again = join(copy.deepcopy(ours), 0, burn_in=1, url=str(tmp_path / "elsewhere"))
    assert float(again.loss(ours(X), X)) == 0
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.steps == peer.steps
    assert torch.equal(again.loss(ours(X), X), peer.loss(ours(X), X))


def test_peers_of_other_architectures_and_topologies(join: Join) -> None:
    sizes = {0: 8, 1: 16, 2: 4, 3: 12}
    models = {group: network(hidden=hidden, seed=group) for group, hidden in sizes.items()}
    shape = {"num_groups": 4, "topology": "ring", "degree": 2}
    before = torch.get_rng_state()
    ends = {
        group: join(model, group, build_peer=lambda peer: network(hidden=sizes[peer]), **shape)
        for group, model in models.items()
    }
    assert torch.equal(torch.get_rng_state(), before)
    for end in ends.values():
        end.step()
    hear(ends[3], teachers=2)
    assert sorted(ends[3].teacher.snapshots) == [0, 1]
    mean = sum(models[group].eval()(X).softmax(-1) for group in (0, 1)) / 2
    logits = models[3](X)
    torch.testing.assert_close(ends[3].loss(logits, X), F.cross_entropy(logits, mean))


def test_compiled_models_and_autocast(join: Join) -> None:
    ours, theirs = network(seed=1), network(seed=2)
    peer, other = join(torch.compile(ours, backend="eager"), 0), join(theirs, 1)
    peer.step()
    hear(other)
    assert set(teacher_of(other, 0).state_dict()) == set(theirs.state_dict())
    other.step()
    hear(peer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = ours(X)
        loss = peer.loss(logits, X)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(loss, by_hand("classes", ours(X), theirs.eval()(X), torch.ones(16)), atol=0.02, rtol=0)
    assert copy.deepcopy(nn.ModuleDict({"model": ours})) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": [0]}, r"peers=\[0\]"),
        ({"num_groups": 2, "peers": [1]}, "either peers"),
        ({"num_groups": 4, "topology": "star"}, "topology='star': choose 'all', 'ring', 'random'"),
        ({"predicts": "pixels"}, "choose 'classes', 'binary', 'values'"),
        ({"every": 0}, "every=0"),
        ({"predicts": "values", "temperature": 2.0}, "temperature=2"),
        ({"url": "nowhere://x"}, "url=nowhere://x"),
    ],
)
def test_wrong_options_are_named(join: Join, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        join(network(), 0, **options)


def test_wrong_predictions_are_named(join: Join) -> None:
    peer = join(network(), 0)
    with pytest.raises(UserError, match="predicts='binary'"):
        peer.loss(torch.zeros(16), X)
    with pytest.raises(UserError, match=r"weights of shape \[3\]"):
        peer.loss(torch.zeros(16, 3), X, weights=torch.ones(3))
