"""A process of a benchmark, which does what the lines of its input say and answers each with a line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from odist.errors import OdistError


class Process:
    """A module of this package in a process of its own. It prints `ready` when it is, and `done` after every line.

    module: run as `python -m MODULE`; log: file for its errors
    environment: variables beside those of this process
    """

    def __init__(
        self, module: str, *arguments: object, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(environment or {})},
            )

    def wait(self, word: str = "ready") -> list[float]:
        """Wait until it has said `word`; returns the numbers said with it. Raises OdistError when it has ended."""
        assert self.process.stdout is not None
        said, *numbers = self.process.stdout.readline().split() or [""]
        if said != word:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise OdistError("a process of the benchmark ended: " + (lines[-1] if lines else "it printed nothing"))
        return [float(number) for number in numbers]

    def begin(self, *words: object) -> None:
        """Give it a line; `wait("done")` waits for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """End its input, and with it the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
