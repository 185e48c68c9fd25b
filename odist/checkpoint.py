"""Saving and loading the state of one group: weights as safetensors, everything else beside them.

A checkpoint is a folder that appears whole or not at all. What the state means is left to the parts
that give and take it; nothing of another party is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from odist.errors import UserError
from odist.run import Run, step_name

WEIGHTS, STATE = "model.safetensors", "state.pt"


def save(run: Run, group: int, *, step: int, model: nn.Module, state: dict[str, Any]) -> Path:
    """Save a group after `step` completed steps; return the folder.

    state: nested dicts and lists of tensors, numbers and strings
    """
    root = run.checkpoint_root(group)
    final = root / step_name(step)
    temporary = root / f".{step_name(step)}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary / WEIGHTS)
        torch.save(state, temporary / STATE)
        for name in (WEIGHTS, STATE):
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())
        replaced = root / f".{step_name(step)}.replaced"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(final, replaced)  # `recover` brings it back if this process is killed here
        os.rename(temporary, final)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def recover(run: Run, group: int) -> None:
    """Repair what a killed process of the group left: half a checkpoint goes, a replaced one comes back."""
    root = run.checkpoint_root(group)
    for folder in list(root.iterdir()) if root.is_dir() else []:
        final = root / folder.name.removeprefix(".").removesuffix(".replaced")
        if folder.name.endswith(".replaced") and not final.exists():
            os.rename(folder, final)
        elif folder.name.startswith("."):
            shutil.rmtree(folder, ignore_errors=True)


def prune(run: Run, num_groups: int, *, keep: int) -> None:
    """Delete every checkpoint that is older than the newest `keep` which all groups have saved."""
    common = sorted(set.intersection(*(set(run.checkpoint_steps(group)) for group in range(num_groups))))
    if not common:
        return
    oldest_kept = common[-max(1, keep) :][0]
    for group in range(num_groups):
        for step in run.checkpoint_steps(group):
            if step < oldest_kept:
                shutil.rmtree(run.checkpoint_root(group) / step_name(step), ignore_errors=True)


def prune_group(run: Run, group: int, *, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a group that resumes from its own."""
    for step in run.checkpoint_steps(group)[: -max(1, keep)]:
        shutil.rmtree(run.checkpoint_root(group) / step_name(step), ignore_errors=True)


def drop_newer(run: Run, group: int, *, than: int) -> None:
    """Delete a group's checkpoints of later steps: the run goes back to where all groups can go on."""
    for step in run.checkpoint_steps(group):
        if step > than:
            shutil.rmtree(run.checkpoint_root(group) / step_name(step), ignore_errors=True)


def common_step(run: Run, num_groups: int) -> int | None:
    """The newest step that every group has saved; None if there is none."""
    steps = [set(run.checkpoint_steps(group)) for group in range(num_groups)]
    common = set.intersection(*steps) if steps else set()
    return max(common) if common else None


def load(run: Run, group: int, *, step: int, model: nn.Module) -> dict[str, Any]:
    """Load a group's weights into `model` and return the rest of its state."""
    folder = run.checkpoint_root(group) / step_name(step)
    load_weights(run, group, step=step, model=model)
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder / STATE}: cannot be loaded: {str(error).splitlines()[0]}") from error
    return state


def load_weights(run: Run, group: int, *, step: int, model: nn.Module) -> None:
    """Load a group's weights of `step` into `model`; UserError if the checkpoint is damaged or another model's."""
    path = run.checkpoint_root(group) / step_name(step) / WEIGHTS
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded as this run's model: {str(error).splitlines()[0]}") from error


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, by name: equal bits, equal hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
