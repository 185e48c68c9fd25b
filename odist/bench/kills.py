"""A lock-step run of two groups as processes, of which one after the other is killed; nothing may be lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from odist.bench.rounds import Row
from odist.errors import OdistError
from odist.run.folder import Run

SECONDS_AT_MOST = 300.0  # for a killed group to be at work again, on a machine that is busy with other things, too
BATCH = 25
EVERY = 10  # steps between checkpoints, exchanges and rows of the log


def survive(folder: Path, *, kills: int, steps: int, say: Callable[[str], None], seed: int = 0) -> Row:
    """Kill processes of a run at random moments; how many of its groups end with the bits of an undisturbed run.

    folder: for both runs; kills: how many; steps: of the run for each kill
    Raises OdistError when the run ends early or stands still.
    """
    folder.mkdir()
    whole, killed = Run(folder / "whole"), Run(folder / "killed")
    number = max(2, kills) * steps  # the last ones are left to recover in
    _finish(_start(whole, "launch=inline", steps=number), folder)
    began = time.monotonic()
    process = _start(killed, "launch=local", f"launch.restarts={kills + 1}", steps=number)
    chance = random.Random(seed)
    for kill in range(kills):
        _await(killed, process, step=max(0, min(kill, kills - 2)) * steps + chance.randrange(steps), folder=folder)
        time.sleep(chance.random() * 0.2)
        victims = workers(killed, besides=process.pid)
        if not victims:
            raise OdistError(f"after {kill} kills no process of the benchmark's run was left: {_words(folder)}")
        os.kill(chance.choice(victims), signal.SIGKILL)
        if (kill + 1) % 20 == 0:
            say(f"faults: {kill + 1} kills in {time.monotonic() - began:.0f} s")
    _finish(process, folder)
    ends = [[group["weight_hash"] for group in run.results["groups"]] for run in (whole, killed)]
    equal = sum(a == b for a, b in zip(*ends, strict=True))
    text = f"groups with an undisturbed run's bits after {kills} random kills (SIGKILL) of their processes / all groups"
    return Row("kills", text, [equal / len(ends[0])], 1.0, at_least=True)


def _start(run: Run, *overrides: str, steps: int) -> subprocess.Popen[bytes]:
    every = EVERY * BATCH
    words = [
        *("scale=smoke", "algorithm=codistill", "model.hidden=[16]", "model.embedding_dim=4", f"train.batch={BATCH}"),
        *(f"train.max_examples={steps * BATCH}", f"task.synthetic.rows={steps * BATCH}", "train.evaluate_every=0"),
        *(f"train.checkpoint_every={every}", f"train.log_every={every}", f"exchange.interval={every}"),
        *("exchange.lag=1", f"algorithm.burn_in={every}", "run.progress=false", f"run.dir={run.path}"),
    ]
    command = [sys.executable, "-m", "odist.cli.main", "train", *words, *overrides]
    with open(run.path.parent / "commands.log", "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait() != 0:
        raise OdistError(f"the benchmark's run ended with code {process.returncode}: {_words(folder)}")


def _words(folder: Path) -> str:
    return " ".join((folder / "commands.log").read_text(encoding="utf-8", errors="replace").splitlines()[-3:])


def _await(run: Run, process: subprocess.Popen[bytes], *, step: int, folder: Path) -> None:
    """Wait until a group has come to a step, both of its groups' processes alive or not."""
    deadline = time.monotonic() + SECONDS_AT_MOST
    while max((run.checkpoint_steps(group) or [0])[-1] for group in range(2)) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            raise OdistError(f"the benchmark's run did not come to step {step}: {_words(folder)}")
        time.sleep(0.02)


def workers(run: Run, *, besides: int) -> list[int]:
    """Ids of the living processes of a run, without the command that started them."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == besides:
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if str(run.path).encode() in words and not dead:
            found.append(int(folder.name))
    return sorted(found)
