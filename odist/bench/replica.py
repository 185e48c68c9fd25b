"""One group of a benchmark in a process of its own (`python -m odist.bench.replica FOLDER GROUP`).

Prints `ready`, then makes as many steps as each line of its input says and prints `done`; ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from odist.config.identity import to_dict
from odist.config.schema import Config
from odist.errors import OdistError
from odist.files import write_atomically

CONFIG = "replicas.yaml"


def serve(folder: Path, *, group: int) -> None:
    """Train the configuration that lies in `folder` when told to."""
    from odist.bench.engine import Engine
    from odist.config.read import load
    from odist.engine.problem import set_up_torch

    config = load(folder / CONFIG)
    set_up_torch(config)
    engine = Engine(folder / f"replica-{group}", config, groups=[group])
    engine.train(2)
    print("ready", flush=True)
    for line in sys.stdin:
        engine.train(int(line))
        print("done", flush=True)
    engine.close()


class Replicas:
    """A process for each of the configuration's groups, which make their steps at the same time.

    folder: where they keep their files
    """

    def __init__(self, folder: Path, config: Config) -> None:
        write_atomically(folder / CONFIG, json.dumps(to_dict(config)))
        command = [sys.executable, "-m", "odist.bench.replica", str(folder)]
        self._log = folder / "replicas.log"
        with open(self._log, "wb") as log:
            self._processes = [
                subprocess.Popen(
                    [*command, str(group)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
                for group in range(config.num_groups)
            ]

    def wait(self, word: str = "ready") -> None:
        """Wait until all have said `word`; OdistError when one has ended."""
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != word:
                lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise OdistError("a process of the benchmark ended: " + (lines[-1] if lines else "it printed nothing"))

    def train(self, steps: int) -> None:
        """Make `steps` steps in each."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        self.wait("done")

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def entry(arguments: Sequence[str]) -> None:
    """Serve with the arguments of the command line."""
    folder, group = arguments
    serve(Path(folder), group=int(group))


if __name__ == "__main__":
    entry(sys.argv[1:])
