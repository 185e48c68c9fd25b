"""`odist export`: a run's models in a folder that needs odist no more, with what gives their inputs a meaning."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odist import __version__
from odist.config.read import load
from odist.config.schema import Config, LMConfig
from odist.deploy.formats import TRACED, WRITERS, Signature
from odist.deploy.members import load_members
from odist.deploy.network import Network
from odist.engine.devices import on_device
from odist.engine.finished import task_of
from odist.engine.precision import in_bf16
from odist.engine.problem import set_up_torch
from odist.errors import UserError
from odist.models.compilable import Compilable
from odist.run.folder import FITTED, Run
from odist.tasks.base import Batch, Task

RECORD = "export.json"
# Of odist's own tasks; the inputs of others are numbered. The names of Hugging Face's models where they have one.
INPUT_NAMES = {"criteo": ("numeric", "categorical"), "lm": ("input_ids",), "imagenet": ("pixel_values",)}
MEANINGS = {
    "numeric": "numbers, Criteo's as sign(x) log(1 + |x|), less numeric_mean, over numeric_std, 0 where missing; then as many "
    "flags, 1 where missing",
    "categorical": "each column's value as its row of the embedding table",
    "input_ids": "tokens",
    "pixel_values": "red, green and blue, (x / 255 - mean) / std by channel, mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225",
}


def export(run: Run, *, format_name: str, member: str | None = None, output: Path | None = None) -> dict[str, Any]:
    """Write a run's models into a folder of their own; see odist.deploy.formats.

    format_name: of WRITERS; member: see `odist.deploy.members.load_members`
    output: the folder; None: RUN/export/FORMAT, or RUN/export/FORMAT-MEMBER. An earlier export there is replaced.
    Returns what export.json holds, and the folder as `path`. Raises UserError for what cannot be exported.
    """
    config = on_device(load(run.path / "config.yaml"), "cpu")
    set_up_torch(config)
    task = task_of(run, config)
    members = load_members(run, config, task, member=member)
    folder = output or run.path / "export" / (format_name if member is None else f"{format_name}-{member}")
    _check_free(folder)
    models = [_plain(model) for model in members.models]
    network, signature = _network(models, config, task)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        WRITERS[format_name](temporary, network, signature)
        if (run.path / FITTED).is_dir():
            shutil.copytree(run.path / FITTED, temporary / FITTED)
        record = {
            "odist": __version__,
            "run": run.env.get("run_id") or run.name,
            "config_hash": run.env.get("config_hash"),
            "task": config.task.name,
            "format": format_name,
            "member": members.name,
            "groups": members.groups,
            "averaged": members.averaged,
            "step": members.step,
            "trained_in": "bf16" if in_bf16(config) else "fp32",
            "inputs": [_described(name, signature) for name in signature.inputs],
            "outputs": signature.outputs,
            "fitted_fingerprint": task.fitted_fingerprint,
            "files": {path.name: _sha256(path) for path in sorted(temporary.iterdir()) if path.is_file()},
        }
        (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"path": str(folder), **record}


def _check_free(folder: Path) -> None:
    """Refuse a place that holds something else than an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / RECORD).is_file()):
        raise UserError(f"--output {folder}: exists and is not an export. Name a new folder.")


def _plain(model: nn.Module) -> nn.Module:
    """The same weights in a network that is not compiled."""
    if not isinstance(model, Compilable):
        return copy.deepcopy(model)
    arguments, named = model.made_with
    plain = type(model)(*arguments, **{**named, **({"compile": False} if "compile" in named else {})})
    plain.load_state_dict(model.state_dict())
    return plain.eval()


@torch.no_grad()
def _network(models: Sequence[nn.Module], config: Config, task: Task) -> tuple[Network, Signature]:
    """The models as one network, and how it is called, from an evaluation batch."""
    batch, names = _sample(config, task)
    binary, states = False, []
    for model in models:
        logits, carry = task.forward(model.eval(), batch, None)
        binary = logits.ndim == batch.targets.ndim
        states.append([] if carry is None else [torch.zeros_like(tensor) for tensor in carry])
    samples = dict(zip(names, batch.inputs, strict=True))
    dynamic = {name: {0: "batch"} for name in names}
    if config.task.name == "lm" and any(states):  # a recurrence is traced for one token, and called token by token
        samples["input_ids"] = samples["input_ids"][:, :1]
    elif config.task.name == "lm":
        dynamic["input_ids"][1] = "steps"
    network = Network(models, binary=binary, num_inputs=len(names), num_states=[len(own) for own in states])
    every = [state for own in states for state in own]
    for place, state in enumerate(every):
        samples[f"state_{place}"] = state
        dynamic[f"state_{place}"] = {state.shape.index(TRACED): "batch"}
    outputs = ["logits", "probabilities", *(f"new_state_{place}" for place in range(len(every)))]
    return network, Signature(samples, dynamic, outputs)


def _sample(config: Config, task: Task) -> tuple[Batch, list[str]]:
    """A batch of TRACED examples to trace a model with, and the names of its inputs."""
    if isinstance(config.task, LMConfig):
        tokens = torch.zeros(TRACED, config.task.unroll, dtype=torch.int64)
        return Batch((tokens,), tokens, torch.ones(tokens.shape)), list(INPUT_NAMES["lm"])
    ids = task.evaluation_order("validation", rows=None, batch_size=1).ids(0)
    batch = task.batch(ids[: min(1, task.num_rows("validation"))], "validation").to("cpu")
    inputs = tuple(_repeated(tensor, TRACED) for tensor in batch.inputs)
    names = INPUT_NAMES.get(config.task.name) or [f"input_{place}" for place in range(len(batch.inputs))]
    return Batch(inputs, _repeated(batch.targets, TRACED), _repeated(batch.weights, TRACED)), list(names)


def _repeated(tensor: Tensor, count: int) -> Tensor:
    """So many copies of the only example; zeros where there is none."""
    if len(tensor):
        return tensor[:1].expand(count, *tensor.shape[1:]).contiguous()
    return tensor.new_zeros(count, *tensor.shape[1:])


def _described(name: str, signature: Signature) -> dict[str, Any]:
    tensor, sizes = signature.inputs[name], signature.dynamic[name]
    shape = [sizes.get(place, size) for place, size in enumerate(tensor.shape)]
    known = {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}
    return {**known, "meaning": MEANINGS.get(name, "0 at the beginning, then what the last call gave")}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
