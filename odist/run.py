"""The run folder: the only thing one command hands to another.

    config.yaml       the finished configuration          env.json      commit, versions, hardware, data
    overrides.txt     what was typed                      status.json   state, step, process
    metrics.jsonl     one JSON object a row               results.json  the numbers of a finished run
    checkpoints/group-0/step-0000000400/                  predictions/validation/group-0.npy
    logs/             one file per process                exchange/     snapshots between groups

Knows paths and files, never what is in a model. Writers replace whole files, so a reader never sees
half of one. Imports neither torch nor (before `metrics` is called) pandas.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

STEP_FOLDER = re.compile(r"step-(\d{10})$")


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`, so that a reader sees the old or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def step_name(step: int) -> str:
    """Name of the checkpoint folder of `step` (number of completed steps)."""
    return f"step-{step:010d}"


@dataclass(frozen=True)
class Predictions:
    """What one run predicts on one split.

    probabilities: float array, [rows] for a binary task, [rows, classes] otherwise
    targets: [rows]
    fingerprint: names the rows and their order; equal for two runs that may be compared
    bayes: [rows] optimal probabilities where the generator knows them
    """

    probabilities: np.ndarray
    targets: np.ndarray
    fingerprint: str
    bayes: np.ndarray | None = None


class Run:
    """One run folder, opened by path; see `create`, `open` and `find`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], *, overrides: list[str], env: dict[str, Any]) -> Run:
        """Make the folder of a new run; config.yaml is written last and makes it a run."""
        import yaml

        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        write_atomically(path / "overrides.txt", "\n".join(overrides) + ("\n" if overrides else ""))
        write_atomically(path / "env.json", json.dumps(env, indent=1) + "\n")
        run.set_status(state="created", step=0)
        write_atomically(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open an existing run folder; UserError if `path` is none."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder. `odist runs` lists the runs below ./runs.")
        if not (path / "config.yaml").is_file():
            inside = [run.path.name for run in cls.find(path)][:5]
            hint = f" It holds runs: {', '.join(inside)}. Name one of them." if inside else ""
            raise UserError(f"{path}: not a run folder (it has no config.yaml).{hint}")
        return cls(path)

    @classmethod
    def find(cls, root: Path | str) -> Iterator[Run]:
        """Every run folder at or below `root`, in the order of their paths; hidden folders are left out."""
        root = Path(root)
        if (root / "config.yaml").is_file() and (root / "status.json").is_file():
            yield cls(root)
            return
        if root.is_dir():
            for child in sorted(root.iterdir()):
                if child.is_dir() and not child.name.startswith("."):
                    yield from cls.find(child)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> dict[str, Any]:
        import yaml

        loaded = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        return dict(loaded)

    @property
    def env(self) -> dict[str, Any]:
        return self._json("env.json")

    @property
    def status(self) -> dict[str, Any]:
        """state (created, running, finished, interrupted, diverged, failed), step, num_steps, pid, times."""
        return self._json("status.json")

    @property
    def horizon(self) -> dict[str, Any]:
        """num_steps and examples_per_step; empty before the run has opened its data."""
        return self._json("horizon.json")

    @property
    def results(self) -> dict[str, Any]:
        """The numbers of a finished run; UserError while there are none."""
        if not (self.path / "results.json").is_file():
            raise UserError(f"{self.path}: not finished ({self.status.get('state', 'unknown')}), so it has no results yet. "
                            "The same `odist train` command continues it.")  # fmt: skip
        return self._json("results.json")

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Replace a JSON file of the folder."""
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    def set_status(self, **fields: Any) -> None:
        """Update some fields of status.json and its time."""
        self.write_json("status.json", {**self.status, **fields, "updated": time.time()})

    def metrics(self, *, kind: str | None = None) -> pd.DataFrame:
        """metrics.jsonl as a frame; `kind` is `train` or `evaluate`.

        A continued run writes the rows after its checkpoint again: the last row of a step counts.
        """
        import pandas as pd

        path = self.path / "metrics.jsonl"
        rows = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    continue  # the last line of a run killed while writing it
        frame = pd.DataFrame(rows)
        if not frame.empty:
            frame = frame.drop_duplicates(["kind", "group", "step"], keep="last", ignore_index=True)
        if kind is not None and not frame.empty:
            frame = frame[frame["kind"] == kind].reset_index(drop=True)
        return frame

    def checkpoint_root(self, group: int) -> Path:
        return self.path / "checkpoints" / f"group-{group}"

    def checkpoint_steps(self, group: int) -> list[int]:
        """Steps of the complete checkpoints of `group`, rising."""
        root = self.checkpoint_root(group)
        if not root.is_dir():
            return []
        found = (STEP_FOLDER.match(child.name) for child in root.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def prediction_root(self, split: str) -> Path:
        return self.path / "predictions" / split

    def evaluation_root(self, group: int) -> Path:
        """Where `train.keep_evaluations` leaves predictions until the run is finished, one file a step."""
        return self.path / "evaluations" / f"group-{group}"

    def predictions(self, split: str = "validation") -> Predictions:
        """What the run predicts: group 0's probabilities, or the mean over groups for an ensemble.

        Which of the two is written in `predictions/<split>/meta.json` by the run itself
        (Anil et al. 2018, section 3.5: one copy of a codistilled pair, fixed in advance, predicts).
        """
        import numpy as np

        root = self.prediction_root(split)
        if not (root / "meta.json").is_file():
            raise UserError(f"{self.path}: no predictions on the {split} part yet (state {self.status.get('state', 'unknown')}). "
                            "A finished run has them; the same `odist train` command continues it.")  # fmt: skip
        meta = json.loads((root / "meta.json").read_text(encoding="utf-8"))
        groups = range(meta["num_groups"]) if meta["predictor"] == "mean" else [0]
        arrays = [np.load(root / f"group-{group}.npy", allow_pickle=False) for group in groups]
        probabilities = np.mean(np.stack([a.astype(np.float64) for a in arrays]), axis=0)
        bayes = root / "bayes.npy"
        return Predictions(
            probabilities=probabilities,
            targets=np.load(root / "targets.npy", allow_pickle=False),
            fingerprint=meta["fingerprint"],
            bayes=np.load(bayes, allow_pickle=False) if bayes.is_file() else None,
        )
