"""Saving and loading the state of one group: weights as safetensors, everything else beside them.

A checkpoint is a folder that appears whole or not at all, with the digests of its files, which are checked before
anything in it is used; those of an older odist, without digests, are checked for their structure. Nothing of
another party is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from odist.errors import Damaged, UserError
from odist.run.damage import SET_ASIDE, set_aside, writing
from odist.run.digest import check_digest, write_digest
from odist.run.folder import Run, step_name

WEIGHTS, AVERAGE, STATE = "model.safetensors", "average.safetensors", "state.pt"
STATE_KEYS = ("step", "unfinished", "strategy", "teacher", "carry", "seconds", "window")
UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, SafetensorError)
Say = Callable[[str], None]


def save(
    run: Run, group: int, *, step: int, weights: Mapping[str, dict[str, torch.Tensor]], state: dict[str, Any]
) -> Path:
    """Save a group after `step` completed steps; return the folder.

    weights: by file, WEIGHTS and, where an average of them predicts, AVERAGE; in the processor's memory
    state: nested dicts and lists of tensors, numbers and strings
    CannotWrite if the disk is full; older checkpoints stay whole.
    """
    root = run.checkpoint_root(group)
    final = root / step_name(step)
    temporary = root / f".{step_name(step)}.{os.getpid()}.tmp"
    try:
        names = (*weights, STATE)
        with writing(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, one in weights.items():
                with writing(final, SafetensorError):
                    save_file(one, temporary / name)
            with writing(final, RuntimeError):  # what torch's own writer raises
                torch.save(state, temporary / STATE)
            for name in names:
                with open(temporary / name, "rb") as file:
                    os.fsync(file.fileno())
            write_digest(temporary, names, env=run.env)
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
        elif folder.name.startswith(".") and not folder.name.startswith(SET_ASIDE):
            shutil.rmtree(folder, ignore_errors=True)


def prune(run: Run, groups: Sequence[int], *, keep: int) -> None:
    """Delete every checkpoint that is older than the newest `keep` which all of `groups` have saved."""
    common = sorted(set.intersection(*(set(run.checkpoint_steps(group)) for group in groups)))
    if not common:
        return
    oldest_kept = common[-max(1, keep) :][0]
    for group in groups:
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


def common_step(run: Run, groups: Iterable[int]) -> int | None:
    """The newest step that all of these groups have saved; None if there is none."""
    steps = [set(run.checkpoint_steps(group)) for group in groups]
    common = set.intersection(*steps) if steps else set()
    return max(common) if common else None


def newest_sound(run: Run, groups: Iterable[int], *, say: Say) -> int | None:
    """The newest step whose checkpoints of all `groups` are sound; None if none of them has ever saved one.

    Checkpoints found damaged on the way are set aside, which `say` is told. Raises Damaged if no sound one is left.
    """
    groups = list(groups)
    while common := set.intersection(*(set(run.checkpoint_steps(group)) for group in groups)):
        step = max(common)
        problems = [problem for problem in (_problem(run, group, step=step) for group in groups) if problem is not None]
        if not problems:
            return step
        if len(common) == 1:  # left where it is: the message says what to do with it
            folder, problem = problems[0]
            raise Damaged(
                f"{problem} No older checkpoint is left to go back to: bring {folder} back from a copy, or remove {run.path} and "
                "type the command again to train from the beginning."
            )
        for folder, problem in problems:
            say(f"{problem} Set aside as {set_aside(folder).name}; going back to an older checkpoint.")
    return None


def _problem(run: Run, group: int, *, step: int) -> tuple[Path, str] | None:
    """The folder of a group's checkpoint and what is wrong with it; None if it is sound."""
    folder = run.checkpoint_root(group) / step_name(step)
    try:
        if not check_digest(folder, (WEIGHTS, STATE), cure=""):
            with safe_open(folder / WEIGHTS, framework="pt") as weights:
                weights.keys()
            _load_state(folder, cure="")
        elif "average" in _load_state(folder, cure=""):
            check_digest(folder, (AVERAGE,), cure="")
    except Damaged as error:
        return folder, str(error).strip()
    except UNREADABLE as error:
        return folder, f"{folder / WEIGHTS}: {_reason(error)}."
    return None


def load(run: Run, group: int, *, step: int, model: nn.Module) -> dict[str, Any]:
    """Load a group's weights into `model` and return the rest of its state; Damaged if either is not what was saved."""
    folder = run.checkpoint_root(group) / step_name(step)
    load_weights(run, group, step=step, model=model)
    check_digest(folder, (STATE,), cure=_remove(folder))
    return _load_state(folder, cure=_remove(folder))


@contextlib.contextmanager
def restoring(run: Run, group: int, *, step: int) -> Iterator[None]:
    """Turn a state that its parts cannot take into Damaged, where only its structure could be checked."""
    folder = run.checkpoint_root(group) / step_name(step)
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        if check_digest(folder, (STATE,), cure=""):
            raise  # it is what was saved: no damage but a bug
        raise Damaged(f"{folder / STATE}: not a state that this run has saved. {_remove(folder)}") from error


def _remove(folder: Path) -> str:
    return f"Remove {folder}: the same command goes back to an older checkpoint, or begins again if there is none."


def _load_state(folder: Path, *, cure: str) -> dict[str, Any]:
    try:
        state: Any = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (*UNREADABLE, pickle.UnpicklingError) as error:  # torch's own words advise to unpickle anything
        raise Damaged(f"{folder / STATE}: {_reason(error)}. {cure}") from error
    absent = [key for key in STATE_KEYS if not isinstance(state, dict) or key not in state]
    if absent:
        raise Damaged(f"{folder / STATE}: not a state that odist saved (it has no {', '.join(absent)}). {cure}")
    return dict(state)


def load_weights(run: Run, group: int, *, step: int, model: nn.Module, averaged: bool = False) -> None:
    """Load a group's weights of `step` into `model`; UserError if the checkpoint is damaged or another model's.

    averaged: those of the average that predicts in their place
    """
    folder = run.checkpoint_root(group) / step_name(step)
    path = folder / (AVERAGE if averaged else WEIGHTS)
    cure = "The run's `odist train` command goes back to an older checkpoint."
    if run.finished:
        cure = (
            "The run's results stay valid; for its weights bring the file back from a copy, or remove "
            f"{run.path} and train the run again."
        )
    check_digest(folder, (path.name,), cure=cure)
    try:
        weights = load_file(path)
    except UNREADABLE as error:
        raise Damaged(f"{path}: {_reason(error)}. {cure}") from error
    if unlike := _unlike(weights, model.state_dict()):
        raise UserError(f"{path}: holds other weights than those of the model: {unlike}.")
    model.load_state_dict(weights)


def _unlike(saved: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> str:
    """Which tensors differ by name or shape, in words; empty if none does."""
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (saved, own)]
    names = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
    shown = [
        f"{name} is {shapes[0].get(name, 'missing')} there, {shapes[1].get(name, 'missing')} here" for name in names[:4]
    ]
    return "; ".join([*shown, *([f"and {len(names) - 4} more tensors"] if len(names) > 4 else [])])


def _reason(error: Exception) -> str:
    """Why a file of a checkpoint cannot be loaded, in a few words."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or 'no such file'})"
    return "damaged (cut off, or not written by odist)"


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, by name: equal bits, equal hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
