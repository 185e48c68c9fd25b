"""Where soft targets come from: every teacher by name, with its meaning and its options.

Options stand below `algorithm.` in the configuration, or where `node` says. This file is read for help and completion, so
it imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from odist.config.key import MISSING, NOT_NEGATIVE, POSITIVE, SHARE, Bounds, key
from odist.config.options import options_of
from odist.errors import UserError
from odist.registry import Part

if TYPE_CHECKING:
    from odist.config.schema import Config

LOSSES = {
    "cross_entropy": "with its probabilities",
    "kl": "divergence from them, of the same gradient",
    "reverse_kl": "the same from the student's side",
    "squared_logits": "mean over the classes of the squared differences of logits",
    "logit_regression": "half their sum over the classes",
}
AVERAGES = ("probabilities", "logits")
DISTRIBUTIONS = {"uniform": "equal shares", "unigram": "the label frequencies"}
TOPOLOGIES = {
    "all": "all others",
    "ring": "the next ones, by their numbers",
    "random": "some, drawn anew at every reload",
}
PRECISIONS = {
    "auto": "as the run's",
    "fp32": "",
    "bf16": "products in bfloat16, batch norms folded",
    "int8": "matrices in 8 bits, not convolutions",
}
TIMINGS = {"lockstep": "the agreed snapshot, the same bits every time", "freshest": "the newest there is"}


@dataclass
class SoftTargetOptions:
    """Options of every teacher: how its loss counts."""

    distill_weight: float = key(1.0, "weight of the teacher's loss", bounds=NOT_NEGATIVE)
    distill_loss: str = key("cross_entropy", "loss against the teacher's prediction", choices=LOSSES)


@dataclass
class ConstantOptions(SoftTargetOptions):
    distribution: str = key("uniform", "prediction of the constant teacher", choices=DISTRIBUTIONS)


@dataclass
class ModelOptions(SoftTargetOptions):
    """Options of teachers that are models."""

    average: str = key("probabilities", "what is averaged over several teachers", choices=AVERAGES)
    burn_in: int = key(0, "examples before the teacher is heard", bounds=NOT_NEGATIVE, as_steps=True)
    ramp: int = key(0, "examples over which its weight then rises", bounds=NOT_NEGATIVE, as_steps=True, younger=True)
    temperature: float = key(
        1.0, "divides the logits of teacher and student; its loss counts the square", bounds=POSITIVE, younger=True
    )
    lookahead: int = key(
        1, "steps whose batches the frozen teacher predicts in one pass", bounds=POSITIVE, node="exchange"
    )
    top_k: int | None = key(
        None, "classes that are kept of a teacher's prediction; null: all", bounds=POSITIVE, younger=True
    )
    top_p: float | None = key(
        None, "... then as few as have this share of its probability", bounds=Bounds(0, 1, open_low=True), younger=True
    )
    teacher_precision: str = key("auto", "of a teacher's products", choices=PRECISIONS, younger=True)

    def check(self, config: Config) -> None:
        if self.temperature != 1 and self.distill_loss in ("squared_logits", "logit_regression"):
            raise UserError(
                f"algorithm.temperature={self.temperature:g} with algorithm.distill_loss={self.distill_loss}: losses of logits "
                "have no temperature. Add algorithm.temperature=1 or algorithm.distill_loss=cross_entropy."
            )
        cut = f"algorithm.top_k={self.top_k}" if self.top_k is not None else f"algorithm.top_p={self.top_p}"
        if self.top_k is not None or self.top_p is not None:
            if self.distill_loss in ("squared_logits", "logit_regression", "reverse_kl"):
                raise UserError(
                    f"{cut} with algorithm.distill_loss={self.distill_loss}: classes that are dropped have no logits. Type "
                    "algorithm.distill_loss=cross_entropy."
                )
            if self.average == "logits":
                raise UserError(
                    f"{cut} with algorithm.average=logits: teachers that keep different classes have no mean of logits. Type "
                    "algorithm.average=probabilities."
                )
        if self.teacher_precision == "fp32" and config.train.precision == "bf16":
            raise UserError(
                "algorithm.teacher_precision=fp32 with train.precision=bf16: such a run casts its teachers, too. Type "
                "algorithm.teacher_precision=bf16 or int8, or leave it out."
            )


PREDICTIONS = (".parquet", ".pq", ".csv")  # files of predictions by row
WEIGHTS = ".safetensors"  # a file of the weights of this run's model


def is_predictions(path: str) -> bool:
    """Whether a teacher is a file of predictions."""
    return path.lower().endswith(PREDICTIONS)


def is_file(path: str) -> bool:
    """Whether a teacher is a file, of predictions or weights, and not a run's folder."""
    return is_predictions(path) or path.lower().endswith(WEIGHTS)


@dataclass
class FixedOptions(ModelOptions):
    teachers: list[str] = key(
        [],
        "what teaches: folders of finished runs, .safetensors, .parquet of predictions by row",
        place="run",
        only_with="algorithm=distill",
    )

    def check(self, config: Config) -> None:
        super().check(config)
        if not self.teachers:
            raise UserError(
                "algorithm.teachers=[]: name the finished runs that teach: algorithm.teachers=[runs/A,runs/B]."
            )
        if len({str(Path(teacher).resolve()) for teacher in self.teachers}) < len(self.teachers):
            raise UserError(f"algorithm.teachers={self.teachers}: a run is named twice.")


@dataclass
class PeersOptions(ModelOptions):
    """Options of teachers that are the other groups, heard through the exchange.

    A teacher of another package whose options are below these is one too: its groups need peers, and in lock-step they
    wait for each other.
    """

    predicts = True  # for every example of a group, which costs forwards

    include_self: bool = key(
        False,
        "peers: the group's own published weights are among its teachers",
        younger=True,
        only_with="algorithm=codistill",
    )
    publish: str = key(
        "weights",
        "what a group publishes; average: that of train.average",
        choices=("weights", "average"),
        node="exchange",
        younger=True,
    )
    topology: str = key(
        "all",
        "which groups teach a group",
        choices=TOPOLOGIES,
        node="exchange",
        younger=True,
        only_with="algorithm=codistill",
    )
    degree: int = key(
        1,
        "ring, random: peers that teach a group at a time",
        bounds=POSITIVE,
        node="exchange",
        younger=True,
        only_with="algorithm=codistill",
    )
    timing: str = key("lockstep", "which snapshot of a peer is used", choices=TIMINGS, node="exchange")
    timeout: float = key(
        600.0, "lockstep: seconds to wait for a peer before saving and giving up", bounds=POSITIVE, node="exchange"
    )
    interval: int = key(
        MISSING, "examples between two reloads of the teacher", bounds=POSITIVE, as_steps=True, node="exchange"
    )
    period: int = key(
        1,
        "predictions: examples between two exchanges, in place of interval; 1: every step",
        bounds=POSITIVE,
        as_steps=True,
        node="exchange",
        younger=True,
        only_with="algorithm=codistill",
    )
    lag: int = key(
        0, "lockstep: use the peer's snapshot of so many intervals ago", bounds=NOT_NEGATIVE, node="exchange"
    )

    def check(self, config: Config) -> None:
        super().check(config)
        if config.num_groups < 2:
            raise UserError(
                f"num_groups={config.num_groups}: algorithm={config.algorithm.name} needs peers to learn from, "
                "so at least 2 groups: num_groups=2."
            )
        if self.topology == "all" and self.degree != 1:
            raise UserError(
                f"exchange.degree={self.degree} with exchange.topology=all: every group learns from all others. Type "
                "exchange.topology=ring or exchange.topology=random, or leave the degree out."
            )
        if self.degree >= config.num_groups:
            raise UserError(
                f"exchange.degree={self.degree} with num_groups={config.num_groups}: a group has {config.num_groups - 1} "
                f"peers at most. Type exchange.degree={config.num_groups - 1} or less."
            )
        if self.period != 1 and config.exchange.name != "predictions":
            raise UserError(
                f"exchange.period={self.period} with exchange={config.exchange.name}: it is of exchange=predictions; weights are "
                "exchanged every exchange.interval examples."
            )
        if self.publish == "average" and config.train.average == "none":
            raise UserError(
                "exchange.publish=average: there is no average to publish. Add train.average=ema or train.average=swa."
            )


@dataclass
class PopulationOptions(PeersOptions):
    """Options of groups that are pulled towards their mean; of their peers' options they read `exchange.` and burn_in."""

    predicts = False  # it costs no forwards

    pull: float = key(
        0.01,
        "population: share of the way to the mean of the groups' weights",
        bounds=SHARE,
        younger=True,
        only_with="algorithm=papa",
    )

    def check(self, config: Config) -> None:
        super().check(config)
        for option, typed in (
            ("topology", "exchange.topology"),
            ("lag", "exchange.lag"),
            ("publish", "exchange.publish"),
            ("lookahead", "exchange.lookahead"),
            ("include_self", "algorithm.include_self"),
            ("distill_weight", "algorithm.distill_weight"),
            ("distill_loss", "algorithm.distill_loss"),
            ("average", "algorithm.average"),
            ("ramp", "algorithm.ramp"),
            ("temperature", "algorithm.temperature"),
            ("top_k", "algorithm.top_k"),
            ("top_p", "algorithm.top_p"),
            ("teacher_precision", "algorithm.teacher_precision"),
        ):
            default = type(self).__dataclass_fields__[option].default
            if getattr(self, option) != default:
                raise UserError(
                    f"{typed}={getattr(self, option)}: nothing reads it with algorithm={config.algorithm.name}, whose groups have "
                    f"no soft targets and all meet. Leave it out, or type {typed}={default}."
                )
        if config.algorithm.strategy not in ("allreduce", "delayed"):
            raise UserError(
                f"algorithm.strategy={config.algorithm.strategy}: its workers have weights of their own, which a pull on the "
                "group's would not reach. Type algorithm.strategy=allreduce."
            )
        if config.groups and any(name.startswith("model.") for group in config.groups for name in group):
            raise UserError("groups: a population has one model, whose weights can be averaged. Leave out model.KEY.")


TEACHERS = {
    "none": Part("odist.teachers.base:NoTeacher", "labels only"),
    "constant": Part("odist.teachers.constant:Constant", "one distribution for all rows", ConstantOptions),
    "fixed": Part("odist.teachers.fixed:Fixed", "finished runs", FixedOptions),
    "peers": Part("odist.teachers.peers:Peers", "the other groups", PeersOptions),
    "population": Part(
        "odist.teachers.population:Population",
        "none; a group's weights are pulled to the groups' mean",
        PopulationOptions,
    ),
}


def peers_options(config: Config) -> PeersOptions | None:
    """The options of a run whose groups teach each other; None where they do not."""
    options = options_of(config, "teachers")
    return options if isinstance(options, PeersOptions) else None
