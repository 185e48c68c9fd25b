"""The typed schema of a run.

Every key that a user may set is a field here, one line each: default, meaning, choices or range, unit
(odist.config.key); the options of strategies, teachers and exchanges are declared by those (odist.config.options).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odist.config.key import BELOW_ONE, MISSING, NOT_NEGATIVE, POSITIVE, SHARE, Bounds, key
from odist.config.options import with_own_options


@dataclass
class TaskConfig:
    name: str = key(MISSING, "registry name", parts="tasks")


@dataclass
class SyntheticConfig:
    """The generator behind `task=criteo data=synthetic`."""

    rows: int = key(384_000, "training rows of one pass, per disjoint stream", bounds=POSITIVE)
    validation_rows: int = key(65_536, "rows of the validation part", bounds=POSITIVE)
    vocabulary: int = key(2_000, "distinct values of the largest categorical column", bounds=POSITIVE)
    zipf: float = key(1.1, "exponent of the value frequencies", bounds=NOT_NEGATIVE)
    missing: float = key(0.15, "mean probability that a cell is missing", bounds=SHARE)
    interactions: int = key(24, "pairs of columns whose joint value shifts the logit", bounds=NOT_NEGATIVE)
    signal: float = key(1.5, "standard deviation of the logit around the base rate", bounds=NOT_NEGATIVE)


@dataclass
class CriteoConfig(TaskConfig):
    name: str = key("criteo", "registry name", parts="tasks")
    synthetic: SyntheticConfig = key(SyntheticConfig(), "the generator of data=synthetic")


@dataclass
class SyntheticTextConfig:
    """The generator behind `task=lm data=synthetic`."""

    rows: int = key(384_000, "training sequences of one pass, per disjoint stream", bounds=POSITIVE)
    validation_rows: int = key(4_096, "sequences of the validation part", bounds=POSITIVE)
    vocabulary: int = key(2_000, "tokens: end of document, topics, names and words", bounds=POSITIVE)
    topics: int = key(16, "topics, each with its own order of the word frequencies", bounds=POSITIVE)
    names: int = key(64, "names; a document repeats the one that it begins with", bounds=POSITIVE)
    document_length: int = key(256, "mean number of tokens of a document", bounds=Bounds(4))
    zipf: float = key(1.1, "exponent of the word frequencies", bounds=NOT_NEGATIVE)
    followers: int = key(8, "words that may follow a word as a set phrase", bounds=POSITIVE)
    phrase: float = key(0.45, "probability that a token continues a phrase", bounds=SHARE)
    recall: float = key(0.05, "probability that a token is the document's name", bounds=SHARE)


@dataclass
class LMConfig(TaskConfig):
    name: str = key("lm", "registry name", parts="tasks")
    unroll: int = key(32, "tokens of an example, a Transformer's context", bounds=POSITIVE)
    synthetic: SyntheticTextConfig = key(SyntheticTextConfig(), "the generator of data=synthetic")


@dataclass
class SyntheticImagesConfig:
    """The generator behind `task=imagenet data=synthetic`."""

    rows: int = key(51_200, "training images of one pass, per disjoint stream", bounds=POSITIVE)
    validation_rows: int = key(4_096, "images of the validation part", bounds=POSITIVE)
    contrast: float = key(0.5, "largest difference of a texture's two colours; 1: black and white", bounds=SHARE)
    noise: float = key(0.15, "standard deviation of each pixel, where 1 is the range of colours", bounds=NOT_NEGATIVE)


JPEG_SIZE = 224  # pixels a side, where `task.size` says nothing
CROPS = {
    "auto": "shifted for decoded images, resized for JPEG",
    "resized": "random area and aspect, flips",
    "shifted": "random shift and flips, decoded stores only",
    "none": "as in evaluation, without flips",
}
DECODERS = {"auto": "fast where it is installed", "fast": "needs odist[images]", "pillow": "slower"}


@dataclass
class ImageNetConfig(TaskConfig):
    name: str = key("imagenet", "registry name", parts="tasks")
    size: int | None = key(None, "pixels a side; null: as stored, of JPEG 224, synthetic 32", bounds=Bounds(8))
    crop: str = key("auto", "how training images are cropped", choices=CROPS)
    decoder: str = key("auto", "what reads JPEG", choices=DECODERS)
    threads: int | None = key(
        1, "threads that decode and crop; null: this process's share of the cores", bounds=POSITIVE
    )
    synthetic: SyntheticImagesConfig = key(SyntheticImagesConfig(), "the generator of data=synthetic")


PARTITIONS = {
    "same": "all rows, each group in its own order",
    "identical": "all rows in one order",
    "disjoint": "each group its own part",
}
HOLDOUTS = {"validation": "the validation part", "tuning": "other rows, for choosing settings"}


@dataclass
class DataConfig:
    name: str = key(MISSING, "where rows come from", choices=("synthetic", "prepared"))
    path: str | None = key(None, "folder made by `odist prepare`, for data=prepared", place="path")
    seed: int = key(0, "seed of generator, training rows and partition, not of their order", bounds=NOT_NEGATIVE)
    partition: str = key("same", "which training rows a group reads", choices=PARTITIONS)
    parts: int | None = key(None, "number of parts of data.partition=disjoint; null: one per group", bounds=POSITIVE)
    first_row: int = key(
        0, "training row to begin with; those before it are not read", bounds=NOT_NEGATIVE, younger=True
    )
    max_rows: int | None = key(
        None, "use only so many training rows, from data.first_row on; null: all", bounds=POSITIVE
    )
    holdout: str = key("validation", "what is evaluated", choices=HOLDOUTS)

    def whole(self, path: Path | str) -> DataConfig:
        """The same, but all rows of another prepared folder."""
        return replace(self, name="prepared", path=str(path), first_row=0, max_rows=None)


COMPILE = "compile the network with torch.compile; its first steps take a minute"


@dataclass
class ModelConfig:
    name: str = key(MISSING, "registry name", parts="models")
    dropout: float = key(0.0, "probability that an activation is dropped", bounds=BELOW_ONE)


@dataclass
class MLPConfig(ModelConfig):
    name: str = key("mlp", "registry name", parts="models")
    embedding_dim: int = key(16, "columns of an embedding table", bounds=POSITIVE)
    embedding_std: float = key(0.05, "standard deviation of the initial embeddings", bounds=NOT_NEGATIVE)
    hidden: list[int] = key([2560, 1024, 256], "units of each hidden layer", bounds=POSITIVE)
    compile: bool = key(False, COMPILE, younger=True)


@dataclass
class DeepFMConfig(ModelConfig):
    name: str = key("deepfm", "registry name", parts="models")
    embedding_dim: int = key(16, "columns of an embedding table", bounds=POSITIVE)
    embedding_std: float = key(0.05, "standard deviation of the initial embeddings", bounds=NOT_NEGATIVE)
    hidden: list[int] = key([400, 400, 400], "units of each hidden layer", bounds=POSITIVE)
    compile: bool = key(False, COMPILE)


STRUCTURES = {"stacked": "the tower reads what the cross layers give", "parallel": "both read the input"}


@dataclass
class DCNV2Config(ModelConfig):
    name: str = key("dcn_v2", "registry name", parts="models")
    embedding_dim: int = key(16, "columns of an embedding table", bounds=POSITIVE)
    embedding_std: float = key(0.05, "standard deviation of the initial embeddings", bounds=NOT_NEGATIVE)
    hidden: list[int] = key([768, 768], "units of each hidden layer", bounds=POSITIVE)
    cross_layers: int = key(2, "layers that multiply with the input", bounds=POSITIVE)
    rank: int | None = key(None, "rank of the cross layers' matrices; null: full", bounds=POSITIVE)
    structure: str = key("stacked", "where the tower stands", choices=STRUCTURES)
    compile: bool = key(False, COMPILE)


@dataclass
class LSTMConfig(ModelConfig):
    name: str = key("lstm", "registry name", parts="models")
    embedding_dim: int = key(256, "columns of the embedding table", bounds=POSITIVE)
    hidden: list[int] = key([1024, 1024], "units of each layer", bounds=POSITIVE)
    compile: bool = key(False, COMPILE, younger=True)


@dataclass
class TransformerConfig(ModelConfig):
    name: str = key("transformer", "registry name", parts="models")
    layers: int = key(6, "blocks of attention and feed-forward layers", bounds=POSITIVE)
    width: int = key(512, "size of the hidden states", bounds=POSITIVE)
    heads: int = key(8, "attention heads of a block", bounds=POSITIVE)
    tied: bool = key(True, "whether the softmax uses the embedding's weights")
    compile: bool = key(False, COMPILE, younger=True)


@dataclass
class ImageNetworkConfig(ModelConfig):
    channels_last: bool = key(False, "memory format of weights and images")
    bf16: bool = key(False, "the older train.precision=bf16, of image networks alone")
    compile: bool = key(False, COMPILE)


@dataclass
class ResNetConfig(ImageNetworkConfig):
    name: str = key("resnet", "registry name", parts="models")
    depth: int = key(50, "layers; 8, 20 and 32 are for images of 32 pixels", choices=(8, 18, 20, 32, 50))


@dataclass
class WideResNetConfig(ImageNetworkConfig):
    name: str = key("wrn", "registry name", parts="models")
    depth: int = key(28, "layers: 10, 16, 22, 28 ...", bounds=Bounds(10))
    width: int = key(10, "factor of the channels, of which there are 16, 32 and 64 at 1", bounds=POSITIVE)


@dataclass
class OptimConfig:
    name: str = key(MISSING, "optimiser", choices=("adagrad", "sgd", "adam", "adamw", "lars"))
    lr: float = key(MISSING, "learning rate", bounds=POSITIVE)
    lr_per: int | None = key(None, "examples a step that optim.lr is for; more scale it up", bounds=POSITIVE)
    momentum: float = key(0.0, "momentum of sgd and lars", bounds=BELOW_ONE)
    nesterov: bool = key(False, "Nesterov's momentum, of sgd and lars")
    trust: float = key(0.001, "lars: step of a layer as a share of its weights' norm, at lr 1", bounds=POSITIVE)
    beta1: float = key(0.9, "adam, adamw: decay of the mean gradient", bounds=BELOW_ONE)
    beta2: float = key(0.999, "adam, adamw: decay of the mean squared gradient", bounds=BELOW_ONE)
    eps: float = key(1e-8, "adam, adamw, adagrad: added to the denominator", bounds=POSITIVE)
    initial_accumulator: float = key(0.0, "adagrad: start of the sum of squared gradients", bounds=NOT_NEGATIVE)
    weight_decay: float = key(0.0, "pull of the weights towards 0", bounds=NOT_NEGATIVE)
    weight_decays: list[float] = key([], "the same after each milestone of `steps`; []: no change", bounds=NOT_NEGATIVE)
    decay_vectors: bool = key(True, "weight decay of biases and gains of norms too")
    sparse: bool = key(True, "sparse gradients for embedding tables (adagrad and plain sgd, no weight decay)")
    clip_norm: float | None = key(None, "largest gradient norm over all parameters; null: no clipping", bounds=POSITIVE)
    schedule: str = key("constant", "learning rate after the warm-up", choices=("constant", "cosine", "steps"))
    warmup: int = key(0, "examples of linear warm-up", bounds=NOT_NEGATIVE, as_steps=True)
    warmup_share: float = key(0.0, "... or as a share of the run", bounds=SHARE)
    warmup_from: float = key(0.0, "learning rate at which the warm-up begins", bounds=NOT_NEGATIVE)
    milestones: list[int] = key([], "examples at which `steps` applies optim.decay", bounds=POSITIVE, as_steps=True)
    milestone_shares: list[float] = key([], "... or as shares of the run", bounds=SHARE)
    decay: float = key(0.1, "factor of the learning rate at each milestone of `steps`", bounds=POSITIVE)
    final_fraction: float = key(0.0, "learning rate at the end of `cosine`, as a share of optim.lr", bounds=SHARE)


# The nodes of strategies, teachers and exchanges have the keys below and the options of odist's own parts, which are declared
# beside the parts' names (odist/strategies/__init__.py and so on). Those of another package's part are added where it is chosen.
@with_own_options("algorithm")
@dataclass
class AlgorithmConfig:
    name: str = key(MISSING, "name of the row in conf/algorithm")
    strategy: str = key("allreduce", "how a group's workers share weights", parts="strategies")
    teacher: str = key("none", "where soft targets come from", parts="teachers")
    label_weight: float = key(1.0, "weight of the labels' loss", bounds=NOT_NEGATIVE)


@with_own_options("exchange")
@dataclass
class ExchangeConfig:
    name: str = key(MISSING, "how groups see each other's weights", parts="exchange")


LAUNCHES = {
    "inline": "all groups take turns in one process",
    "local": "processes on this machine",
    "env": "in place, in processes that torchrun, srun or Kubernetes has started",
}
DEVICES = {"auto": "cuda where this machine has it", "cpu": "the same bits everywhere", "cuda": "NVIDIA's GPUs"}


@dataclass
class LaunchConfig:
    name: str = key(MISSING, "how processes are started", choices=LAUNCHES)
    processes: int = key(1, "launch=local: processes that carry the virtual workers of one group", bounds=POSITIVE)
    group: int | None = key(
        None,
        "train this group alone; other jobs with the same exchange.url and run.id train the others",
        bounds=NOT_NEGATIVE,
        younger=True,
    )
    restarts: int = key(3, "launch=local: restarts of a group's processes after a crash", bounds=NOT_NEGATIVE)
    patience: float = key(
        600.0, "launch=local: seconds without a sign of life before a group is ended", bounds=POSITIVE
    )
    threads: int = key(1, "torch threads of each process; the last bits depend on it", bounds=POSITIVE)
    device: str = key("cpu", "where it computes; a process takes the device of its number", choices=DEVICES)


PRECISIONS = {"auto": "bf16 at scale=paper on a GPU, else fp32", "fp32": "", "bf16": "teachers are cast, too"}
AVERAGES = {
    "none": "the last weights",
    "ema": "their exponential average",
    "swa": "their plain mean",
    "groups": "the mean over the groups, of algorithm=papa",
}


@dataclass
class TrainConfig:
    batch: int = key(MISSING, "examples per virtual worker and step", bounds=POSITIVE)
    passes: float = key(1.0, "length of the run: passes over the training rows ...", bounds=POSITIVE)
    max_examples: int | None = key(None, "... or examples per group; null: no limit", bounds=POSITIVE, as_steps=True)
    evaluate_every: int = key(0, "examples between evaluations; 0: only at the end", bounds=NOT_NEGATIVE, as_steps=True)
    evaluate_batch: int = key(4096, "examples of one forward in evaluations", bounds=POSITIVE)
    evaluate_rows: int | None = key(None, "validation rows of evaluations on the way; null: all", bounds=POSITIVE)
    keep_evaluations: bool = key(False, "keep the predictions of every evaluation, for the curve of an ensemble's mean")
    checkpoint_every: int = key(0, "examples between checkpoints; 0: at the end", bounds=NOT_NEGATIVE, as_steps=True)
    keep_checkpoints: int = key(1, "newest checkpoints that are kept", bounds=POSITIVE)
    checkpoint_copy: str | None = key(
        None,
        "folder or URL that gets copies of them, from which a new run folder goes on",
        place="url",
        younger=True,
    )
    log_every: int = key(0, "examples between rows of metrics.jsonl; 0: 100 rows", bounds=NOT_NEGATIVE, as_steps=True)
    average: str = key("none", "what predicts: the weights or an average of them", choices=AVERAGES, younger=True)
    average_horizon: int | None = key(
        None,
        "ema: examples after which a step counts 1/e; null: a tenth of the run",
        bounds=POSITIVE,
        as_steps=True,
        younger=True,
    )
    average_from: int | None = key(
        None,
        "examples before the average; null: none, of swa 3/4 of the run",
        bounds=NOT_NEGATIVE,
        as_steps=True,
        younger=True,
    )
    training_rows: int = key(
        0,
        "training rows that are predicted at the end, for training_* in the results",
        bounds=NOT_NEGATIVE,
        younger=True,
    )
    precision: str = key("auto", "of products; losses and statistics are fp32", choices=PRECISIONS, younger=True)
    prefetch: int = key(2, "steps prepared ahead by threads", bounds=NOT_NEGATIVE)
    # Group k starts from its group k, or all from its group 0 where it has another number of groups. Optimizer state,
    # schedule and steps start afresh.
    init_from: str | None = key(
        None, "finished run whose model comes first; null: random weights", place="run", younger=True
    )


@dataclass
class RunConfig:
    dir: str | None = key(
        None, "run folder; null: runs/ and an own name; with -m the folder of all runs", place="typed"
    )
    id: str | None = key(None, "name of the run in a store that several jobs share; null: one of its own")
    progress: bool = key(True, "show bars on a terminal, lines elsewhere")
    sinks: list[str] = key([], "trackers that follow the run: tensorboard, wandb, mlflow")


@dataclass
class Config:
    """One run, complete."""

    seed: int = key(0, "seed of initialisation, order of rows and dropout", bounds=NOT_NEGATIVE)
    num_groups: int = key(1, "groups, each with a model of its own", bounds=POSITIVE)
    groups: list[dict[str, Any]] = key(
        [], "model.KEY and optim.KEY of each group, as in [{model.dropout:0.1},{}]; []: all alike", younger=True
    )
    workers: int = key(1, "virtual data-parallel workers per group; each adds train.batch to a step", bounds=POSITIVE)
    scale: str = key(MISSING, "sizes of data, model and run")
    task: TaskConfig = key(TaskConfig(), "what is learnt")
    data: DataConfig = key(DataConfig(), "where the rows come from")
    model: ModelConfig = key(ModelConfig(), "the network")
    optim: OptimConfig = key(OptimConfig(), "optimiser and learning rate")
    algorithm: AlgorithmConfig = key(AlgorithmConfig(), "how it is learnt")
    exchange: ExchangeConfig = key(ExchangeConfig(), "how groups see each other's weights")
    launch: LaunchConfig = key(LaunchConfig(), "which processes do the work")
    train: TrainConfig = key(TrainConfig(), "length, batch, evaluations and checkpoints")
    run: RunConfig = key(RunConfig(), "run folder and what is shown; the results do not depend on it")

    @property
    def trained_groups(self) -> range:
        """The groups that the run folder of this configuration trains: all, or `launch.group` alone."""
        only = self.launch.group
        return range(self.num_groups) if only is None else range(only, only + 1)
