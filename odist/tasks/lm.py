"""Language modelling on a prepared token store, or on synthetic text.

An example is one sequence of `task.unroll` tokens of one lane, so a step reads workers x batch sequences, as in
Anil et al. 2018, section 3.1: a lane goes on where its last example ended, and the model may carry its state.
The paper does not say how lanes are cut; our choice: every group and pass has its own order of documents, and lanes
begin at evenly spaced places of that order.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from odist import registry
from odist.config.schema import Config, LMConfig
from odist.data.lanes import Documents, EvaluationLanes, TrainingLanes, union
from odist.data.order import num_parts, order_seed
from odist.data.store import damaged
from odist.data.tokens import TokenStore
from odist.errors import UserError
from odist.losses import LossOptions, Soft, Sums, multiclass
from odist.measure.language import LanguageMetrics, language_results
from odist.rng import derive, mix
from odist.tasks.base import Batch, Carry
from odist.tasks.rows import generator_fingerprint, num_read, tuning_fingerprint
from odist.tasks.synthetic_text import LONGEST, SyntheticText

TUNING_SHARE = 16  # data.holdout=tuning: at most a 16th of the training documents is evaluated and not trained on
PRIOR_TOKENS = 1 << 18  # tokens of the generator from which frequencies are counted

Tokens = tuple[np.ndarray, np.ndarray | None]


class Source(Protocol):
    """Documents, and tokens by address with their true probabilities or None."""

    fingerprint: str
    fitted_fingerprint: str
    vocabulary: int

    def documents(self, split: str, *, part: int = 0, parts: int = 1) -> Documents: ...

    def tokens(self, addresses: np.ndarray, split: str) -> Tokens: ...

    def unigram(self) -> np.ndarray: ...

    def bytes_per_token(self, split: str) -> float | None: ...


class LMTask:
    """Next-token prediction; see `odist.tasks.base.Task` for the methods."""

    main_metric = "cross_entropy"

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, LMConfig)
        self.config = config
        self.unroll = config.task.unroll
        synthetic = config.data.name == "synthetic"
        self.source: Source = SyntheticSource(config) if synthetic else PreparedSource(config)
        self.fingerprint = self.source.fingerprint
        self.fitted_fingerprint = self.source.fitted_fingerprint
        self.loss_options = LossOptions.of(config.algorithm)

    def build_model(self) -> nn.Module:
        options = {key: value for key, value in asdict(self.config.model).items() if key != "name"}
        model: nn.Module = registry.find("models", self.config.model.name)(self.source.vocabulary, **options)
        return model

    def _parts(self, num_groups: int) -> int:
        return num_parts(self.config.data.partition, self.config.data.parts, num_groups=num_groups)

    def num_rows(self, split: str) -> int:
        """Sequences of a split; of the smallest part if each group reads its own, so that a pass reads none twice."""
        parts = self._parts(self.config.num_groups) if split == "train" else 1
        tokens = min(self.source.documents(split, part=part, parts=parts).num_tokens for part in range(parts))
        return max(0, tokens - 1) // self.unroll

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> TrainingLanes:
        if self.num_rows("validation") == 0:
            raise UserError(
                f"data.path={self.config.data.path}: its validation part is shorter than one sequence of "
                f"task.unroll={self.unroll} tokens. Prepare more text, or a larger share for validation."
            )
        parts = self._parts(num_groups)
        documents = self.source.documents("train", part=group if parts > 1 else 0, parts=parts)
        return TrainingLanes(documents, examples_per_step, unroll=self.unroll, seed=seed)

    def distinct_rows(self, *, num_groups: int, examples: int) -> int:
        per_step = self.config.train.batch * self.config.workers
        read = []
        for group in range(num_groups):
            # as odist.engine.wiring
            seed = order_seed(self.config.seed, group=group, partition=self.config.data.partition)
            order = self.order(group=group, num_groups=num_groups, examples_per_step=per_step, seed=seed)
            read.append(order.read(examples // per_step))
        starts, stops = (np.concatenate(ends) for ends in zip(*read, strict=True))
        return union(starts, stops) // self.unroll

    def evaluation_order(self, split: str, *, rows: int | None, batch_size: int) -> EvaluationLanes:
        return EvaluationLanes(self.source.documents(split), batch_size, unroll=self.unroll, rows=rows)

    def batch(self, ids: np.ndarray, split: str) -> Batch:
        tokens, bayes = self.source.tokens(ids, split)
        whole = torch.from_numpy(tokens)
        targets = whole[:, 1:].contiguous()
        return Batch(
            (whole[:, :-1].contiguous(),),
            targets,
            torch.ones(targets.shape),
            None if bayes is None else torch.from_numpy(bayes[:, 1:].copy()),
        )

    def forward(self, model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        logits, carry = model(batch.inputs[0], carry)
        return logits, carry

    def loss(self, logits: Tensor, batch: Batch, soft: Soft | None = None) -> Sums:
        return multiclass(logits, batch.targets, weights=batch.weights, options=self.loss_options, soft=soft)

    def metrics(self) -> LanguageMetrics:
        return LanguageMetrics(bytes_per_token=self.source.bytes_per_token("validation"))

    def probabilities(self, logits: Tensor, batch: Batch) -> Tensor:
        """Of the correct token only, [batch x tokens]: all of them would be as many numbers as the logits."""
        flat, targets = logits.flatten(0, -2), batch.targets.flatten()
        return (flat.gather(1, targets[:, None])[:, 0] - flat.logsumexp(dim=-1)).exp()

    def results(
        self, probabilities: np.ndarray, targets: np.ndarray, *, bayes: np.ndarray | None, split: str
    ) -> dict[str, Any]:
        order = self.evaluation_order(split, rows=None, batch_size=self.config.train.evaluate_batch)
        return language_results(
            order.by_lane(probabilities),
            bytes_per_token=self.source.bytes_per_token(split),
            bayes=None if bayes is None else order.by_lane(bayes),
        )

    def prior(self) -> Tensor:
        return torch.from_numpy(self.source.unigram()).float()


class SyntheticSource:
    """Documents of the generator; `rows` sequences of a pass and as many more for every further disjoint stream."""

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, LMConfig)
        self.options = config.task.synthetic
        self.unroll = config.task.unroll
        self.splits = {"train": "train", "validation": config.data.holdout}
        self.rows = {
            "train": num_read(config.data, self.options.rows),
            "validation": self.options.validation_rows,
        }
        self.first_row = config.data.first_row
        self.generator = SyntheticText(self.options, seed=config.data.seed)
        self.vocabulary = self.options.vocabulary
        name, data = "synthetic-text-1", config.data
        self.fingerprint = generator_fingerprint(name, data.seed, data.holdout, asdict(config.task))
        made_by = {key: value for key, value in asdict(self.options).items() if key not in ("rows", "validation_rows")}
        self.fitted_fingerprint = generator_fingerprint(name, data.seed, made_by)
        self._kept: OrderedDict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()  # the groups of a process prepare their batches in threads of their own

    def documents(self, split: str, *, part: int = 0, parts: int = 1) -> Documents:
        """As many documents as hold the split's sequences and one more target; the first and the last are cut to size."""
        skipped = self.first_row * self.unroll if split == "train" else 0
        needed = skipped + self.rows[split] * self.unroll + 1
        numbers = np.empty(0, dtype=np.int64)
        lengths = numbers
        while lengths.sum() < needed:
            count = len(numbers) + int((needed - lengths.sum()) / self.options.document_length) + 8
            numbers = (part << 32) + np.arange(count, dtype=np.int64)
            lengths = self.generator.lengths(numbers, self.splits[split])
        ends = np.cumsum(lengths)
        count = int(np.searchsorted(ends, needed)) + 1
        lengths = lengths[:count].copy()
        begun = np.maximum(0, skipped - (ends[:count] - lengths))  # tokens of each document that are passed over
        lengths[-1] -= ends[count - 1] - needed
        kept = begun < lengths
        return Documents((numbers[:count] * LONGEST + begun)[kept], (lengths - begun)[kept])

    def tokens(self, addresses: np.ndarray, split: str) -> Tokens:
        numbers, offsets = np.divmod(addresses, LONGEST)
        distinct, owner = np.unique(numbers, return_inverse=True)
        with self._lock:
            made = self._made(distinct, self.splits[split])
        starts = np.cumsum([0, *(len(tokens) for tokens, _ in made[:-1])])
        places = starts[owner.reshape(numbers.shape)] + offsets
        tokens, bayes = (np.concatenate(parts) for parts in zip(*made, strict=True))
        return tokens[places], bayes[places]

    def _made(self, numbers: np.ndarray, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and probabilities of documents, those that the lanes are reading kept from step to step."""
        missing = np.array([number for number in numbers if (split, int(number)) not in self._kept], dtype=np.int64)
        if len(missing):
            lengths, tokens, bayes = self.generator.documents(missing, split)
            cuts = np.cumsum(lengths)[:-1]
            for number, own, probability in zip(missing, np.split(tokens, cuts), np.split(bayes, cuts), strict=True):
                self._kept[split, int(number)] = own, probability
        made = []
        for number in numbers:
            self._kept.move_to_end((split, int(number)))
            made.append(self._kept[split, int(number)])
        while len(self._kept) > 1024 + 4 * len(numbers):
            self._kept.popitem(last=False)
        return made

    def unigram(self) -> np.ndarray:
        numbers = np.arange(PRIOR_TOKENS // self.options.document_length + 1, dtype=np.int64)
        counts = np.bincount(self.generator.documents(numbers, "train")[1], minlength=self.vocabulary) + 1.0
        return counts / counts.sum()

    def bytes_per_token(self, split: str) -> float | None:
        return None


class PreparedSource:
    """Documents of a store made by `odist prepare text`."""

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, LMConfig)
        data = config.data
        self.store = TokenStore.open(Path(str(data.path)))
        self.fingerprint, self.fitted_fingerprint = self.store.fingerprint, self.store.fitted_fingerprint
        self.vocabulary = self.store.vocabulary
        self.data_seed = data.seed
        self.tuning = data.holdout == "tuning"
        if self.tuning:  # other documents are evaluated
            self.fingerprint = tuning_fingerprint(self.fingerprint)
        self.first_row, self.skipped_tokens = data.first_row, data.first_row * config.task.unroll
        self.most_tokens = None if data.max_rows is None else data.max_rows * config.task.unroll + 1

    def documents(self, split: str, *, part: int = 0, parts: int = 1) -> Documents:
        stored = "train" if self.tuning else split
        starts = np.asarray(self.store.document_starts(stored))
        chosen = np.arange(len(starts) - 1, dtype=np.uint64)
        if self.tuning:
            held_out = self._held_out(chosen)
            chosen = chosen[held_out if split == "validation" else ~held_out]
        if split == "train":
            chosen = self._read(chosen, np.diff(starts)[chosen])
        if parts > 1:
            key = derive(self.data_seed, "partition")
            chosen = chosen[mix(chosen, key=key) % np.uint64(parts) == np.uint64(part)]
        return Documents(starts[chosen], starts[chosen + np.uint64(1)] - starts[chosen])

    def _read(self, documents: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The documents that lie between data.first_row and data.max_rows as a whole, in sequences of task.unroll tokens."""
        ends = np.cumsum(lengths)
        if self.skipped_tokens and self.skipped_tokens >= (ends[-1] if len(ends) else 0):
            raise UserError(
                f"data.first_row={self.first_row}: the training text ends before. Type a smaller number of sequences."
            )
        inside = ends - lengths >= self.skipped_tokens
        if self.most_tokens is not None:
            inside &= ends - self.skipped_tokens <= self.most_tokens
        return documents[inside]

    def _held_out(self, documents: np.ndarray) -> np.ndarray:
        """Which training documents the tuning evaluates: as many as validation has, drawn by a hash of their number."""
        wanted = min(len(documents) // TUNING_SHARE, len(self.store.document_starts("validation")) - 1)
        keys = mix(documents, key=derive(0, "tuning"))
        count = max(1, wanted)
        return keys <= np.partition(keys, count - 1)[count - 1]

    def tokens(self, addresses: np.ndarray, split: str) -> Tokens:
        stored = "train" if self.tuning else split
        ids = self.store.tokens(stored)[addresses].astype(np.int64)
        if ids.size and ids.max() >= self.vocabulary:
            raise damaged(
                self.store.path / f"{stored}.bin", f"a token {ids.max()} in a vocabulary of {self.vocabulary:,}"
            )
        return ids, None

    def unigram(self) -> np.ndarray:
        return self.store.unigram()

    def bytes_per_token(self, split: str) -> float | None:
        stored = "train" if self.tuning else split
        return self.store.num_bytes(stored) / max(1, self.store.num_tokens(stored))
