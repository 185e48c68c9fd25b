"""Damaged run folders: checkpoints and the files beside them, met by the commands that read them.

A codistilled run as a kill leaves it, or a finished one, is copied and damaged. `odist train` must end it in the bits of the
undamaged run or refuse with one message, `odist eval` give the same numbers or refuse, `odist runs` list it.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import Typed, odist, weight_hashes

from fuzz.campaign import WrongUse
from fuzz.snapshot_damage import Bomb
from odist.engine.checkpoint import STATE, WEIGHTS
from odist.run.digest import FILE as DIGEST
from odist.run.folder import Run

COMMAND = ["train", "scale=smoke", "run.progress=false", "model.hidden=[8]", "algorithm=codistill", "train.max_examples=1200",
           "task.synthetic.vocabulary=20", "task.synthetic.validation_rows=100", "algorithm.burn_in=200",
           "exchange.interval=200", "train.checkpoint_every=300", "train.keep_checkpoints=3"]  # fmt: skip
STEPS = (12, 18, 24)  # saved; the last is the end
Damage = Callable[[Path, random.Random], None]


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 16])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def _replace(path: Path, rng: random.Random, make: Callable[[], object]) -> None:
    path.unlink()
    make()


def _link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["nowhere", path.name, "..", "/dev/zero"]))


DAMAGES: dict[str, Damage] = {
    "flipped bits": _flip,
    "cut": lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size)),
    "empty": lambda path, rng: os.truncate(path, 0),
    "longer": lambda path, rng: path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 999))) and None,
    "zeros at the end": lambda path, rng: os.truncate(path, path.stat().st_size + 4096),
    "random bytes": lambda path, rng: path.write_bytes(rng.randbytes(rng.randint(1, 9999))) and None,
    "other JSON": lambda path, rng: (
        path.write_text(rng.choice(["[]", "{}", "null", "7", '{"step": "x"}', "[" * 5000])) and None
    ),
    "a pickle": lambda path, rng: path.write_bytes(pickle.dumps(Bomb())) and None,
    "a file of torch": lambda path, rng: torch.save({"model": Bomb(), "step": 1}, path),
    "missing": lambda path, rng: path.unlink(),
    "a folder": lambda path, rng: _replace(path, rng, path.mkdir),
    "a FIFO": lambda path, rng: _replace(path, rng, lambda: os.mkfifo(path)),
    "a link to elsewhere": _link,
}
FILES = {
    "weights": WEIGHTS,
    "state": STATE,
    "digest": DIGEST,
    "configuration": "config.yaml",
    "status": "status.json",
    "environment": "env.json",
    "horizon": "horizon.json",
    "metrics": "metrics.jsonl",
}
FOLDERS: dict[str, Callable[[Run, random.Random], None]] = {
    "checkpoint of another group": lambda run, rng: _swap(run, (0, STEPS[1]), (1, STEPS[1])),
    "checkpoint of another step": lambda run, rng: _swap(run, (0, STEPS[1]), (0, STEPS[0])),
    "checkpoint gone": lambda run, rng: shutil.rmtree(_checkpoint(run, rng.randrange(2), STEPS[1])),
    "checkpoint empty": lambda run, rng: _emptied(_checkpoint(run, rng.randrange(2), STEPS[1])),
    "checkpoint of a strange name": lambda run, rng: (
        _checkpoint(run, 0, STEPS[1]).rename(
            run.checkpoint_root(0) / rng.choice(["step-x", "step-99999999999999999999", "step--000000001", "step-"])
        )
        and None
    ),
    "checkpoints gone": lambda run, rng: shutil.rmtree(run.checkpoint_root(rng.randrange(2))),
}
KINDS = [*(f"{file}, {damage}" for damage in DAMAGES for file in FILES), *FOLDERS]


def _checkpoint(run: Run, group: int, step: int) -> Path:
    return run.checkpoint_root(group) / f"step-{step:010d}"


def _swap(run: Run, one: tuple[int, int], other: tuple[int, int]) -> None:
    """Put one checkpoint in the place of another, digest and all."""
    shutil.rmtree(_checkpoint(run, *one))
    shutil.copytree(_checkpoint(run, *other), _checkpoint(run, *one))


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


class Target:
    """A finished run, and the same one as a kill after its last checkpoint but one leaves it."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        done = odist(*COMMAND, "run.dir=whole", cwd=root)
        assert done.returncode == 0, done.stderr
        self.whole, self.killed = root / "whole", root / "killed"
        self.hashes = weight_hashes(Run(self.whole))
        self.results = self._evaluated(self.whole).stdout.replace(str(self.whole), "RUN")
        shutil.copytree(self.whole, self.killed)
        run = Run(self.killed)
        for group in range(2):
            assert run.checkpoint_steps(group) == list(STEPS)
            shutil.rmtree(_checkpoint(run, group, STEPS[-1]))
        shutil.rmtree(self.killed / "predictions")
        (self.killed / "results.json").unlink()
        run.set_status(state="running", step=STEPS[1])

    def _evaluated(self, path: Path) -> Typed:
        return odist("eval", path, "--json", cwd=path.parent)

    def run(self, kind: str, rng: random.Random, folder: Path) -> str:
        finished = rng.random() < 0.3
        path = folder / "run"
        shutil.copytree(self.whole if finished else self.killed, path)
        self._damage(Run(path), kind, rng, step=STEPS[-1] if finished else STEPS[1])
        listed = odist("runs", folder, cwd=folder)
        self._one_message(listed, codes=(0, 2))
        if finished:
            done = self._evaluated(path)
            self._one_message(done, codes=(0, 2))
            if done.returncode == 0 and done.stdout.replace(str(path), "RUN") != self.results:
                raise WrongUse(f"other numbers:\n{done.stdout}\nand not\n{self.results}")
        else:
            done = odist(*COMMAND, "exchange.timeout=20", f"run.dir={path}", cwd=folder)
            self._one_message(done, codes=(0, 2))
            if done.returncode == 0 and weight_hashes(Run(path)) != self.hashes:
                raise WrongUse(f"other weights:\n{done.stdout}{done.stderr}")
        said = done.stdout + done.stderr
        return "rejected" if done.returncode or "damaged" in said or "set aside" in said.lower() else "harmless"

    def _damage(self, run: Run, kind: str, rng: random.Random, *, step: int) -> None:
        if kind in FOLDERS:
            FOLDERS[kind](run, rng)
            return
        file, damage = kind.split(", ")
        name = FILES[file]
        inside = name in (WEIGHTS, STATE, DIGEST)
        DAMAGES[damage]((_checkpoint(run, rng.randrange(2), step) if inside else run.path) / name, rng)

    def _one_message(self, done: Typed, *, codes: tuple[int, ...]) -> None:
        if done.returncode not in codes:
            raise WrongUse(f"exit code {done.returncode}: {done.stderr}")
        if "Traceback" in done.stderr or "weights_only" in done.stderr or len(done.stderr.splitlines()) > 12:
            raise WrongUse(f"no message for a user: {done.stderr}")
