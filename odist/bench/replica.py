"""One group of a benchmark in a process of its own (`python -m odist.bench.replica FOLDER GROUP START`).

Makes as many steps as each line of its input says and answers with the median seconds of a step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from odist.bench.process import Process
from odist.config.identity import to_dict
from odist.config.schema import Config
from odist.files import write_atomically

CONFIG = "replicas.yaml"


def serve(folder: Path, *, group: int, start: int) -> None:
    """Train the configuration that lies in `folder` when told to; start: completed steps that are taken for granted."""
    from odist.bench.engine import Engine
    from odist.config.read import load
    from odist.engine.problem import set_up_torch

    config = load(folder / CONFIG)
    set_up_torch(config)
    engine = Engine(folder / f"replica-{group}", config, groups=[group], start=start)
    engine.train(2)
    print("ready", flush=True)
    for line in sys.stdin:
        print("done", engine.median_step(int(line)), flush=True)
    engine.close()


def write_config(folder: Path, config: Config) -> None:
    """Put the configuration where the processes of `folder` read it."""
    write_atomically(folder / CONFIG, json.dumps(to_dict(config)))


def start_replica(folder: Path, group: int, *, start: int = 0, environment: Mapping[str, str] | None = None) -> Process:
    """Start the process of one group; arguments as of `serve` and Process. `write_config` has been called for `folder`."""
    log = folder / f"replica-{group}.log"
    return Process("odist.bench.replica", folder, group, start, log=log, environment=environment)


class Replicas:
    """A process for each of the configuration's groups, which make their steps at the same time.

    folder: where they keep their files
    """

    def __init__(self, folder: Path, config: Config) -> None:
        write_config(folder, config)
        self._replicas = [start_replica(folder, group) for group in range(config.num_groups)]

    def wait(self, word: str = "ready") -> None:
        """Wait until all have said `word`; OdistError when one has ended."""
        for replica in self._replicas:
            replica.wait(word)

    def train(self, steps: int) -> None:
        """Make `steps` steps in each."""
        for replica in self._replicas:
            replica.begin(steps)
        self.wait("done")

    def close(self) -> None:
        """End them."""
        for replica in self._replicas:
            replica.close()


def entry(arguments: Sequence[str]) -> None:
    """Serve with the arguments of the command line."""
    folder, group, start = arguments
    serve(Path(folder), group=int(group), start=int(start))


if __name__ == "__main__":
    entry(sys.argv[1:])
