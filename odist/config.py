"""The typed schema of a run, and the hash that names one.

Every key that a user may set is a field here, with its unit in the comment beside it. Reading a configuration
against this schema is left to odist.config_read, what a key *does* to the part that reads it, which values make
sense together to odist.validate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"  # OmegaConf's own mark, written out so that workers need no OmegaConf


@dataclass
class TaskConfig:
    name: str = MISSING  # registry name, odist.tasks


@dataclass
class SyntheticConfig:
    """The generator behind `task=criteo data=synthetic`."""

    rows: int = 384_000  # training rows of one pass, per disjoint stream
    validation_rows: int = 65_536
    vocabulary: int = 2_000  # distinct values of the largest categorical column
    zipf: float = 1.1  # exponent of the value frequencies
    missing: float = 0.15  # mean probability that a cell is missing
    interactions: int = 24  # pairs of columns whose joint value shifts the logit
    signal: float = 1.5  # standard deviation of the logit around the base rate


@dataclass
class CriteoConfig(TaskConfig):
    name: str = "criteo"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class SyntheticTextConfig:
    """The generator behind `task=lm data=synthetic`."""

    rows: int = 384_000  # training sequences of one pass, per disjoint stream
    validation_rows: int = 4_096
    vocabulary: int = 2_000  # tokens: end of document, topics, names and words
    topics: int = 16  # each with its own order of the word frequencies
    names: int = 64  # a document repeats the one that it begins with
    document_length: int = 256  # mean number of tokens
    zipf: float = 1.1  # exponent of the word frequencies
    followers: int = 8  # words that may follow a word as a set phrase
    phrase: float = 0.45  # probability that a token continues a phrase
    recall: float = 0.05  # probability that a token is the document's name


@dataclass
class LanguageConfig(TaskConfig):
    name: str = "lm"
    unroll: int = 32  # tokens of one example: of backpropagation through time, of a Transformer's context
    synthetic: SyntheticTextConfig = field(default_factory=SyntheticTextConfig)


@dataclass
class SyntheticImagesConfig:
    """The generator behind `task=imagenet data=synthetic`."""

    rows: int = 51_200  # training images of one pass, per disjoint stream
    validation_rows: int = 4_096
    contrast: float = 0.5  # how far the two colours of a texture lie apart at most, 1: black and white
    noise: float = 0.15  # standard deviation of each pixel, where 1 is the range of colours


JPEG_SIZE = 224  # pixels a side, where `task.size` says nothing


@dataclass
class ImageNetConfig(TaskConfig):
    name: str = "imagenet"
    size: int | None = None  # pixels a side; null: as a decoded store has them, 224 of JPEG, 32 of synthetic images
    # Of training images: resized | shifted (decoded stores only) | auto: shifted for decoded, resized for JPEG | none: as
    # in evaluation, without flips
    crop: str = "auto"
    decoder: str = "auto"  # of JPEG: fast (odist[images]) | pillow | auto: fast where it is installed
    threads: int = 1  # threads that decode and crop; no part of the bits
    synthetic: SyntheticImagesConfig = field(default_factory=SyntheticImagesConfig)


@dataclass
class DataConfig:
    name: str = MISSING  # synthetic | prepared
    path: str | None = None  # folder made by `odist prepare`
    seed: int = 0  # generator, training rows, partition; never the order
    partition: str = "same"  # same: all rows, each group in its order | identical: in one order | disjoint: its part
    parts: int | None = None  # disjoint: number of parts; null: one per group
    max_rows: int | None = None  # use only the first so many training rows
    holdout: str = "validation"  # what is evaluated: validation | tuning (other rows, for choosing settings)


@dataclass
class ModelConfig:
    name: str = MISSING  # registry name, odist.models
    dropout: float = 0.0


@dataclass
class MLPConfig(ModelConfig):
    name: str = "mlp"
    embedding_dim: int = 16
    embedding_std: float = 0.05  # standard deviation of the embeddings' start
    hidden: list[int] = field(default_factory=lambda: [2560, 1024, 256])


@dataclass
class LSTMConfig(ModelConfig):
    name: str = "lstm"
    embedding_dim: int = 256
    hidden: list[int] = field(default_factory=lambda: [1024, 1024])  # units of each layer


@dataclass
class TransformerConfig(ModelConfig):
    name: str = "transformer"
    layers: int = 6
    width: int = 512
    heads: int = 8
    tied: bool = True  # whether the softmax uses the embedding's weights


@dataclass
class ResNetConfig(ModelConfig):
    name: str = "resnet"
    depth: int = 50  # 18 | 50 | for images of 32 pixels: 8 | 20
    channels_last: bool = False  # memory format of weights and images
    bf16: bool = False  # convolutions and matrix products in bfloat16; weights, batch norms and losses in float32
    compile: bool = False  # by torch.compile


@dataclass
class OptimConfig:
    name: str = MISSING  # adagrad | sgd | adam | adamw | lars
    lr: float = MISSING
    lr_per: int | None = None  # examples a step that `lr` is meant for: more of them scale it up; null: no scaling
    momentum: float = 0.0  # sgd, lars
    nesterov: bool = False  # sgd, lars
    trust: float = 0.001  # lars: step of a layer as a share of its weights' norm, at lr 1
    beta1: float = 0.9  # adam, adamw
    beta2: float = 0.999  # adam, adamw
    eps: float = 1e-8  # adam, adamw, adagrad
    initial_accumulator: float = 0.0  # adagrad
    weight_decay: float = 0.0
    weight_decays: list[float] = field(default_factory=list)  # after each milestone of `steps`; empty: as at the start
    decay_vectors: bool = True  # weight decay of parameters with one dimension too: biases and gains of norms
    sparse: bool = True  # sparse gradients for embedding tables (adagrad and plain sgd, no weight decay)
    clip_norm: float | None = None  # largest gradient norm over all parameters
    schedule: str = "constant"  # constant | cosine | steps
    warmup: int = 0  # examples of linear warm-up
    warmup_share: float = 0.0  # ... or as a share of the run
    warmup_from: float = 0.0  # learning rate at which the warm-up begins
    milestones: list[int] = field(default_factory=list)  # examples at which `steps` multiplies by `decay`
    milestone_shares: list[float] = field(default_factory=list)  # ... or as shares of the run
    decay: float = 0.1
    final_fraction: float = 0.0  # of the learning rate at the end of `cosine`


@dataclass
class AlgorithmConfig:
    name: str = MISSING
    strategy: str = "allreduce"  # allreduce | delayed | local_sgd
    teacher: str = "none"  # none | constant | fixed | peers
    label_weight: float = 1.0
    distill_weight: float = 1.0
    distill_loss: str = "cross_entropy"  # cross_entropy | kl | squared_logits
    average: str = "probabilities"  # how several teachers become one: probabilities | logits
    burn_in: int = 0  # examples before the teacher is heard
    distribution: str = "uniform"  # constant teacher: uniform | unigram
    teachers: list[str] = field(default_factory=list)  # fixed teacher: finished run folders
    delay: int | None = None  # delayed: updates between pull and push; null: workers - 1
    average_every: int = MISSING  # local_sgd: examples between two averages of the workers


@dataclass
class ExchangeConfig:
    name: str = MISSING  # memory | store
    timing: str = "lockstep"  # lockstep: the agreed snapshot, equal bits | freshest: the newest there is
    url: str | None = None  # store: folder or fsspec URL; null: exchange/ of the run folder
    timeout: float = 600.0  # lockstep: seconds to wait for a peer before saving and giving up
    poll: float = 1.0  # freshest: seconds between two looks into the store
    keep: int = 3  # freshest: own snapshots kept in the store
    interval: int = MISSING  # examples between two reloads of the teacher
    lag: int = 0  # lockstep: the peer's snapshot of so many intervals ago
    lookahead: int = 1  # steps whose batches the frozen teacher predicts in one pass


@dataclass
class LaunchConfig:
    name: str = MISSING  # inline | local
    processes: int = 1  # local: processes that carry the virtual workers of one group
    restarts: int = 3  # local: times a group's processes are started again after a crash
    threads: int = 1  # torch threads of each process; part of the bits
    device: str = "cpu"  # cpu | cuda


@dataclass
class TrainConfig:
    batch: int = MISSING  # examples per virtual worker and step
    passes: float = 1.0  # horizon: passes over the training rows ...
    max_examples: int | None = None  # ... or so many examples per group, whichever comes first
    evaluate_every: int = 0  # examples; 0: only at the end
    evaluate_batch: int = 4096  # examples of one forward in evaluations
    evaluate_rows: int | None = None  # rows of the validation part for evaluations on the way; null: all
    keep_evaluations: bool = False  # evaluations on the way keep their predictions, for the curve of an ensemble's mean
    checkpoint_every: int = 0  # examples; 0: only at the end and on interruption
    keep_checkpoints: int = 1
    log_every: int = 0  # examples between two training rows in metrics.jsonl; 0: a hundred rows a run
    prefetch: int = 2  # steps prepared ahead by threads


@dataclass
class RunConfig:
    dir: str | None = None  # null: runs/<task>-<algorithm>-s<seed>-<hash>; with -m the parent folder
    progress: bool = True
    sinks: list[str] = field(default_factory=list)  # trackers that follow the run: tensorboard, wandb, mlflow


@dataclass
class Config:
    """One run, complete."""

    seed: int = 0  # initialisation, order, dropout
    num_groups: int = 1
    workers: int = 1  # virtual data-parallel workers per group
    scale: str = MISSING
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


# Schema of the `task` and of the `model` node by registry name; conf/task/<name>.yaml opens with
# `<name>_schema@task`, conf/model/<name>.yaml with `<name>_schema`.
TASK_CONFIGS: dict[str, type[TaskConfig]] = {"criteo": CriteoConfig, "lm": LanguageConfig, "imagenet": ImageNetConfig}
MODEL_CONFIGS: dict[str, type[ModelConfig]] = {
    "mlp": MLPConfig,
    "lstm": LSTMConfig,
    "transformer": TransformerConfig,
    "resnet": ResNetConfig,
}
# Nodes whose keys depend on their name: what the schema says, then the choices.
VARIANTS: dict[type, dict[str, Any]] = {TaskConfig: TASK_CONFIGS, ModelConfig: MODEL_CONFIGS}

# Keys that decide nothing of what is learnt or measured. They are not hashed and may change when a run is continued.
# `data.path` and `algorithm.teachers` are places: what lies there is named by `config_hash(content=...)`.
FREE_KEYS = (
    "run",
    "task.threads",
    "data.path",
    "exchange.url",
    "exchange.timeout",
    "exchange.poll",
    "exchange.keep",
    "launch.name",
    "launch.processes",
    "launch.restarts",
    "train.prefetch",
    "train.keep_checkpoints",
    "train.checkpoint_every",
    "train.log_every",
)


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain dicts, lists and values, in the order of the fields."""
    return dataclasses.asdict(config)


def flatten(content: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, prefix=f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _decides(key: str) -> bool:
    return not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def config_hash(config: Config, *, content: Mapping[str, Any] | None = None) -> str:
    """64 hexadecimal digits naming everything that decides the result (all but FREE_KEYS).

    content: dotted keys that are places (`data.path`, `algorithm.teachers`) with what lies there,
    such as a store's fingerprint; hashed instead of the place.
    """
    deciding = {key: value for key, value in flatten(to_dict(config)) if _decides(key)}
    text = json.dumps({**deciding, **(content or {})}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` for every key that differs and decides the result."""
    before, after = dict(flatten(to_dict(old))), dict(flatten(to_dict(new)))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if _decides(key) and before.get(key) != after.get(key)
    ]
