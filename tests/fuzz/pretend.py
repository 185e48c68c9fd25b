"""A target that does what none may do, to see that the campaign notices."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fuzz.campaign import BYTES_A_CASE, WrongUse


def _raise(folder: Path) -> None:
    raise OverflowError("as it came")


def _use(folder: Path) -> None:
    raise WrongUse("another's weights")


def _swallow(folder: Path) -> None:
    try:
        time.sleep(600)
    except Exception:
        return


def _thread(folder: Path) -> None:
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()


DEEDS: dict[str, Callable[[Path], object]] = {
    "fine": lambda folder: (folder / "inside").write_text("x"),
    "exceptions": _raise,
    "wrong uses": _use,
    "hangs": _swallow,
    "hangs in a thread": _thread,
    "files outside": lambda folder: (folder.parent / "more").write_text("x"),
    "files outside, changed": lambda folder: (folder.parent / "beside").write_text("x"),
    "memory": lambda folder: np.ones(BYTES_A_CASE // 8 + 10_000_000),
    "exceptions: the process dies": lambda folder: os._exit(7),
}
KINDS = list(DEEDS)


class Target:
    """Does its deeds."""

    def __init__(self, root: Path) -> None:
        pass

    def run(self, kind: str, rng: random.Random, folder: Path) -> str:
        DEEDS[kind](folder)
        return "harmless"
