"""The rows of `odist bench teachers`: what a codistillation step costs beside a plain one, by the precision of the teacher.

Criteo's paper model in the whole engine, reloads included; the paper's language model and a Transformer in a step of their
own, without data and reloads. A teacher that predicts in fp32 adds a forward, a third of a step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from odist.bench.criteo import BUCKETS, HIDDEN, ROWS, make_config, write_store
from odist.bench.engine import engines
from odist.bench.rounds import Arm, Ratio, Row, compare, interleave
from odist.config.schema import OptimConfig
from odist.engine.problem import set_up_torch
from odist.losses import LossOptions, multiclass
from odist.mesh import Mesh
from odist.models.lstm import LSTM
from odist.models.transformer import Transformer
from odist.optim import Clock, Optimizer
from odist.tasks.base import Batch, Carry
from odist.teachers.base import Panel

LOOKAHEAD = 8
PRECISIONS = ("fp32", "bf16", "int8")
GOALS = {
    "fp32": 1.36,
    "bf16": 1.18,
    "int8": 1.12,
}  # of the median; the limits of the arithmetic are 1.33, 1.17 and 1.08
GOAL_AHEAD = {"fp32": 1.36, "bf16": 1.12, "int8": 1.07}


@dataclass(frozen=True)
class Language:
    """A language model, what makes it, and its step of `batch` sequences of `unroll` tokens."""

    build: Callable[[], nn.Module]
    vocabulary: int = 24_000
    batch: int = 8
    unroll: int = 32


def _lstm() -> nn.Module:
    return LSTM(24_000, embedding_dim=256, hidden=(1024, 1024))  # Anil et al. 2018, section 3.1


def _transformer() -> nn.Module:
    return Transformer(24_000, layers=6, width=512, heads=8)


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement; interval: steps of a turn, and between two reloads of the teacher (a multiple of LOOKAHEAD)."""

    rows: int = ROWS
    buckets: int = BUCKETS
    hidden: tuple[int, ...] = HIDDEN
    batch: int = 100
    interval: int = 48
    models: Mapping[str, Language] = field(
        default_factory=lambda: {"lstm": Language(_lstm), "transformer": Language(_transformer, batch=2, unroll=128)}
    )


def measure(*, rounds: int, say: Callable[[str], None], size: Size | None = None) -> list[Row]:
    """Measure every row, in a temporary folder that is gone afterwards.

    say: told what is going on
    """
    size = size or Size()
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as name:
        folder = Path(name)
        say(f"writing {size.rows:,} random rows")
        write_store(folder / "store", rows=size.rows, buckets=size.buckets)
        say(f"Criteo, batch {size.batch}: {rounds} rounds of a plain trainer and teachers of every precision")
        rows = _criteo(folder, size, rounds=rounds)
    for kind, model in size.models.items():
        say(f"{kind}: {rounds} rounds of a plain step and teachers of every precision")
        rows += _language(kind, model, rounds=rounds)
    return rows


def _criteo(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    turn, batch = size.interval, size.batch
    make = partial(make_config, folder / "store", batch=batch, hidden=size.hidden, interval=turn, log=turn)
    configs = {"plain": make()}
    for precision in PRECISIONS:
        for ahead in (1, LOOKAHEAD):
            own = make(num_groups=2, peers=True, lookahead=ahead)
            own.algorithm.teacher_precision = precision  # type: ignore[attr-defined]  # an option of teachers
            configs[f"{precision} {ahead}"] = own
    set_up_torch(configs["plain"])
    with engines(folder / "runs", configs, start=turn - 2, offered=(rounds + 2) * turn) as made:
        arms = [Arm(name, engine.train, turn) for name, engine in zip(configs, made, strict=True)]
        timings = interleave(arms, rounds=rounds, warm_up=2)
    step = f"step with one {{}} teacher / plain step, Criteo, batch {batch}, reload every {turn} steps"
    ratios = []
    for precision in PRECISIONS:
        text = step.format(precision)
        ratios += [
            Ratio(f"criteo_{precision}", f"{precision} 1", "plain", text, GOALS[precision]),
            Ratio(
                f"criteo_{precision}_ahead",
                f"{precision} {LOOKAHEAD}",
                "plain",
                f"the same with exchange.lookahead={LOOKAHEAD}",
                GOAL_AHEAD[precision],
            ),
        ]
    return [compare(timings, ratio, batch=batch) for ratio in ratios]


class LanguageSteps:
    """Training steps of a language model on random tokens, with or without a teacher.

    precision: of the teacher; None: without one
    """

    def __init__(self, model: Language, *, precision: str | None) -> None:
        torch.manual_seed(0)
        self.model = model.build()
        config = OptimConfig(name="adam", lr=0.001, clip_norm=1.0)  # as conf/optim/adam.yaml and the presets
        self.optimizer = Optimizer(self.model, config, clock=Clock(model.batch, 1_000_000))
        tokens, targets = torch.randint(model.vocabulary, (2, model.batch, model.unroll))
        self.batch = Batch((tokens,), targets, torch.ones(targets.shape))
        self.carry: Carry = None
        self.panel: Panel | None = None
        if precision is not None:
            self.panel = Panel(
                _forward,
                batches=lambda step: [self.batch],
                lookahead=1,
                num_steps=1_000_000,
                mesh=Mesh(),
                precision=precision,
            )
            self.panel.place(1, model.build(), step=0)

    def run(self, steps: int) -> None:
        """Make `steps` steps."""
        torch.set_num_threads(1)
        for step in range(steps):
            soft = None if self.panel is None else self.panel.predict(step, 0, self.batch)
            logits, self.carry = _forward(self.model, self.batch, self.carry)
            sums = multiclass(logits, self.batch.targets, weights=self.batch.weights, options=LossOptions(), soft=soft)
            (sums.total / self.batch.targets.numel()).backward()
            self.optimizer.update(step)
            self.optimizer.zero_grad()


def _forward(model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
    logits, carry = model(batch.inputs[0], carry)
    return logits, carry


def _language(kind: str, model: Language, *, rounds: int) -> list[Row]:
    systems = {"plain": None, **{precision: precision for precision in PRECISIONS}}
    arms = [Arm(name, LanguageSteps(model, precision=precision).run, 1) for name, precision in systems.items()]
    timings = interleave(arms, rounds=rounds, warm_up=1)
    tokens = model.batch * model.unroll
    text = f"step with one {{}} teacher / plain step, {kind}, {model.vocabulary:,} classes, {tokens} tokens, no reload"
    ratios = [
        Ratio(f"{kind}_{precision}", precision, "plain", text.format(precision), GOALS[precision])
        for precision in PRECISIONS
    ]
    return [compare(timings, ratio, batch=tokens) for ratio in ratios]
