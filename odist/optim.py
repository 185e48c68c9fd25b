"""Optimisers and learning-rate schedules, whose times are counted in examples.

Embedding tables get sparse gradients where that gives the same result as dense ones; everything dense
uses torch's fused kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from odist.config.schema import OptimConfig


@dataclass(frozen=True)
class Clock:
    """Time of a run, counted in examples per group and shown in steps.

    examples_per_step: over all virtual workers of a group; num_steps: the horizon
    """

    examples_per_step: int
    num_steps: int

    @property
    def horizon(self) -> int:
        """Examples per group at the end of the run."""
        return self.examples_per_step * self.num_steps

    def steps(self, examples: int) -> int:
        """Examples as steps, rounded to the nearest, at least 1; 0 stays 0 (never)."""
        return 0 if examples <= 0 else max(1, round(examples / self.examples_per_step))


def absolute(config: OptimConfig, *, clock: Clock) -> OptimConfig:
    """`config` with what is relative to the run made absolute: learning rate of its step, schedule in examples.

    Source: Goyal et al. 2017, section 2.1 (the learning rate grows linearly with the examples of a step).
    """
    horizon = clock.horizon
    return replace(
        config,
        lr=config.lr if config.lr_per is None else config.lr * clock.examples_per_step / config.lr_per,
        lr_per=None,
        warmup=config.warmup or round(config.warmup_share * horizon),
        warmup_share=0.0,
        milestones=config.milestones or [round(share * horizon) for share in config.milestone_shares],
        milestone_shares=[],
    )


def learning_rate(config: OptimConfig, examples: float, *, horizon: int) -> float:
    """Learning rate after `examples` examples per group of a run of `horizon` examples.

    config: with `absolute` values
    Linear warm-up goes up to whichever schedule follows (Goyal et al. 2017, section 2.2).
    """
    rate = config.lr
    if config.schedule == "cosine":
        share = min(1.0, max(0.0, (examples - config.warmup) / max(1, horizon - config.warmup)))
        low = config.final_fraction
        rate *= low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share))
    elif config.schedule == "steps":
        rate *= config.decay ** _passed(config, examples)
    if examples < config.warmup:
        rate = config.warmup_from + (rate - config.warmup_from) * ((examples + 1) / config.warmup)
    return rate


def weight_decay(config: OptimConfig, examples: float) -> float:
    """Weight decay after `examples` examples per group.

    Source: Sodhani et al. 2020, "A closer look at codistillation for distributed training": 1e-4, then 1e-5, then 0.
    """
    return [config.weight_decay, *config.weight_decays][_passed(config, examples) if config.weight_decays else 0]


def _passed(config: OptimConfig, examples: float) -> int:
    return sum(examples >= milestone for milestone in config.milestones)


class Optimizer:
    """A torch optimiser per kind of gradient (dense, sparse), one schedule, one clip over all.

    model: its parameters are optimised in place; config: see `OptimConfig`; clock: of the run
    """

    def __init__(self, model: nn.Module, config: OptimConfig, *, clock: Clock) -> None:
        config = absolute(config, clock=clock)
        self.model = model
        self.config = config
        self.clock = clock
        self.last_lr = config.lr
        self._last_norm: Tensor | None = None
        sparse = set_sparse_gradients(model, config)
        dense = [
            parameter for parameter in model.parameters() if id(parameter) not in sparse and parameter.requires_grad
        ]
        tables = [parameter for parameter in model.parameters() if id(parameter) in sparse]
        self.parameters = [*dense, *tables]
        self._parts = [_torch_optimizer(_by_decay(dense, config), config, fused=True)] if dense else []
        if tables:
            self._parts.append(_torch_optimizer([{"params": tables}], config, fused=False))

    def twin(self) -> Optimizer:
        """Another optimiser over the same parameters with state of its own."""
        return Optimizer(self.model, self.config, clock=self.clock)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def update(self, step: int, *, fraction: float = 0.0, norm: float | None = None) -> None:
        """Clip, set the learning rate of `step` + `fraction` (0-based) and make one update.

        norm: of the gradient over all parameters, where other processes have some of it
        """
        examples = (step + fraction) * self.clock.examples_per_step
        self.last_lr = learning_rate(self.config, examples, horizon=self.clock.horizon)
        self._last_norm = None if norm is None else torch.tensor(norm, dtype=torch.float64)
        if self.config.clip_norm is not None:
            self._last_norm = found = self._norm() if self._last_norm is None else self._last_norm
            if found.device.type != "cpu":  # clipped where it is: to ask for the norm would be to wait for it
                _scale_gradients(self.parameters, (self.config.clip_norm / found).clamp(max=1))
            elif found > self.config.clip_norm:
                _scale_gradients(self.parameters, self.config.clip_norm / float(found))
        _match_layouts(self.parameters)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self.last_lr
                if self.config.weight_decays and not group.get("never_decays"):
                    group["weight_decay"] = weight_decay(self.config, examples)
            part.step()

    def grad_norm(self) -> float:
        """Norm of the gradient over all parameters: the last update's, before clipping."""
        return float(self._norm() if self._last_norm is None else self._last_norm)

    def hear_norm(self, norm: float) -> None:
        """Take this for the last update's `grad_norm`, where other processes have some of the gradient."""
        self._last_norm = torch.tensor(norm, dtype=torch.float64)

    def _norm(self) -> Tensor:
        """As `grad_norm`, float64 [] where the gradients are."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if gradients and gradients[0].device.type != "cpu":
            return torch.linalg.vector_norm(torch.stack([_gradient_norm(each) for each in gradients]).double())
        return torch.tensor(total_norm(self.norms()), dtype=torch.float64)

    def norms(self) -> Tensor:
        """Norm of each parameter's gradient, 0 where there is none: float64 [parameters], in the host's memory."""
        gradients = [parameter.grad for parameter in self.parameters]
        norms = [0.0 if each is None else float(_gradient_norm(each)) for each in gradients]
        return torch.tensor(norms, dtype=torch.float64)

    def state_dict(self, *, only: Sequence[nn.Parameter] | None = None) -> dict[str, Any]:
        """only: parameters whose state is wanted; None: all"""
        parts = [part.state_dict() for part in self._parts]
        if only is not None:
            wanted = {id(parameter) for parameter in only}
            for part, saved in zip(self._parts, parts, strict=True):
                order = [id(parameter) for group in part.param_groups for parameter in group["params"]]
                saved["state"] = {at: state for at, state in saved["state"].items() if order[at] in wanted}
        return {"parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the state of parameters that another process updates."""
        for parameter in parameters:
            for part in self._parts:
                part.state.pop(parameter, None)


def total_norm(norms: Tensor) -> float:
    """Norm of a gradient of those of its parameters, float64 [parameters]; added one by one, in their order."""
    return math.sqrt(sum(norm**2 for norm in norms.tolist()))


def set_sparse_gradients(model: nn.Module, config: OptimConfig) -> set[int]:
    """Give embedding tables sparse gradients where the update stays the same; ids of those parameters.

    Same maths: Adagrad and plain SGD without weight decay touch only the rows of the batch. Adam and
    momentum move every row at every step, so their tables stay dense.
    """
    plain_sgd = config.name == "sgd" and config.momentum == 0
    decays = config.weight_decay != 0 or any(config.weight_decays)
    same = not decays and (config.name == "adagrad" or plain_sgd)
    sparse = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = bool(config.sparse and same and module.max_norm is None)
            if module.sparse:
                sparse.add(id(module.weight))
    return sparse


class LARS(torch.optim.SGD):
    """SGD with momentum in which a layer's step is a share `trust` of its weights' norm, at learning rate 1.

    Source: You, Gitman and Ginsburg 2017, "Large batch training of convolutional networks", algorithm 1, with the
    learning rate outside of the momentum as in torch's SGD. Our choice, as in most implementations: parameters of one
    dimension, and those whose norm or gradient is 0, move as by SGD.
    """

    def __init__(self, params: Iterable[Any], *, trust: float, **options: Any) -> None:
        super().__init__(params, **options)
        self.trust = trust

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient, size = parameter.grad, _norm(parameter)
                slope = _norm(gradient)
                gradient.add_(parameter, alpha=decay)
                if parameter.ndim > 1:
                    share = self.trust * size / (slope + decay * size)
                    gradient.mul_(torch.where((size > 0) & (slope > 0), share, 1.0))
            group["weight_decay"] = 0.0  # is in the gradient already
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


def _by_decay(parameters: list[nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups: one, or those with weight decay and those that never have any."""
    if config.decay_vectors:
        return [{"params": parameters}]
    groups: list[dict[str, Any]] = [{"params": [parameter for parameter in parameters if parameter.ndim > 1]}]
    groups.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "never_decays": True})
    return [group for group in groups if group["params"]]


def _torch_optimizer(parameters: list[dict[str, Any]], config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    if config.name == "adagrad":
        return torch.optim.Adagrad(
            parameters,
            lr=config.lr,
            eps=config.eps,
            weight_decay=config.weight_decay,
            initial_accumulator_value=config.initial_accumulator,
            fused=fused or None,
        )
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=fused or None,
        )
    if config.name == "lars":
        return LARS(
            parameters,
            trust=config.trust,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=fused or None,
        )
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.name](
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused or None,
    )


@torch.no_grad()
def _scale_gradients(parameters: Sequence[Tensor], factor: float | Tensor) -> None:
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse and isinstance(factor, Tensor):
            parameter.grad._values().mul_(factor)
        elif parameter.grad is not None:
            parameter.grad.mul_(factor)


def _gradient_norm(gradient: Tensor) -> Tensor:
    return _norm(gradient.coalesce().values() if gradient.is_sparse else gradient)


def _norm(tensor: Tensor) -> Tensor:
    # A sum in the order of the memory has other bits in another memory format, and gradients come in several.
    return torch.linalg.vector_norm(tensor.detach().float().contiguous())


def _match_layouts(parameters: Sequence[Tensor]) -> None:
    """Give every dense gradient its parameter's memory format, as fused kernels expect."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and not gradient.is_sparse and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
