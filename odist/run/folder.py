"""The run folder: the only thing one command hands to another.

    config.yaml       the finished configuration          env.json      commit, versions, hardware, data
    overrides.txt     what was typed                      status.json   state, step, process
    metrics.jsonl     one JSON object a row               results.json  the numbers of a finished run
    checkpoints/group-0/step-0000000400/                  predictions/validation/group-0.npy
    logs/             one file per process                exchange/     snapshots between groups
    fitted/           the prepared data's meaning         export/       models for other software
    events/           asynchronous SGD: who pulled which weights, which gradient made which update
    .damaged-...      what was found damaged and replaced

Writers replace whole files, so a reader never sees half of one; a file that is damaged all the same raises Damaged,
with the cure. Importing this module loads neither torch nor pandas.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odist.errors import Damaged, UserError
from odist.files import read_json_lines, write_atomically
from odist.run.damage import Kinds, read_json, read_yaml, writing
from odist.run.predictions import META, Predictions, read_group_predictions, read_predictions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FITTED = "fitted"  # what gave the rows of prepared data their meaning, as a store without rows
STEP_FOLDER = re.compile(r"step-(\d{10})$")
CONTINUE = "The run's `odist train` command makes it again."
MARKS = ("config.yaml", "status.json", "env.json")  # what every run folder has from its beginning
NODES = ("task", "data", "model", "optim", "algorithm", "exchange", "launch", "train", "run")  # of config.yaml
KINDS: dict[str, Kinds] = {
    "env.json": {"config_hash": str, "data_fingerprint": str, "run_id": str, "source_hash": str, "continued_by": list},
    "status.json": {"state": str, "step": int, "num_steps": int, "pid": int, "host": str, "updated": (int, float)},
    "horizon.json": {"num_steps": int, "examples_per_step": int},
    "results.json": {"metrics": dict, "groups": list, "split": str, "missing_groups": list},
}


def step_name(step: int) -> str:
    """Name of the checkpoint folder of `step` (number of completed steps)."""
    return f"step-{step:010d}"


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
        """Open an existing run folder. Raises UserError if `path` is not one."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder. `odist runs` lists the runs below ./runs.")
        if not cls.lies_at(path):
            inside = [run.path.name for run in cls.find(path)][:5]
            hint = f" It holds runs: {', '.join(inside)}. Name one of them." if inside else ""
            raise UserError(f"{path}: not a run folder (it has no config.yaml).{hint}")
        return cls(path)

    @classmethod
    def open_finished(cls, path: Path | str, *, key: str) -> Run:
        """Open a run to build on; UserError, naming the key that asks for it, if it is not finished."""
        run = cls.open(path)
        if not run.finished:
            raise UserError(
                f"{key}: {path} is not finished (state {run.status.get('state')}). Continue it first by its own "
                "`odist train` command."
            )
        return run

    @staticmethod
    def lies_at(path: Path) -> bool:
        """Whether `path` is a run folder, even one that has lost its config.yaml or its status.json."""
        return sum(os.path.lexists(path / name) for name in MARKS) >= 2

    @classmethod
    def find(cls, root: Path | str) -> Iterator[Run]:
        """Every run folder at or below `root`, in the order of their paths; hidden folders are left out."""
        root = Path(root)
        if cls.lies_at(root):
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
        path = self.path / "config.yaml"
        content = read_yaml(path, cure=CONTINUE)
        for node in NODES:
            if node in content and not isinstance(content[node], dict):
                raise Damaged(f"{path}: damaged ({node} does not hold keys and values). {CONTINUE}")
            if not isinstance(content.get(node, {}).get("name", ""), str):
                raise Damaged(f"{path}: damaged ({node}.name is not a word). {CONTINUE}")
        return content

    @property
    def env(self) -> dict[str, Any]:
        return self._json("env.json")

    @property
    def status(self) -> dict[str, Any]:
        """state (created, running, finished, incomplete, interrupted, diverged, failed), step, num_steps, pid, time."""
        return self._json("status.json")

    @property
    def horizon(self) -> dict[str, Any]:
        """num_steps and examples_per_step; empty before the run has opened its data."""
        return self._json("horizon.json")

    @property
    def results(self) -> dict[str, Any]:
        """The numbers of a finished run, or of its sound groups. Raises UserError before there are any.

        Their `missing_groups` are those that were lost; the key is absent if none was.
        """
        if not os.path.lexists(self.path / "results.json"):
            state = self.status.get("state", "unknown")
            how = "its results.json is missing" if state == "finished" else f"not finished ({state})"
            raise UserError(
                f"{self.path}: {how}, so it has no results{'' if state == 'finished' else ' yet'}. "
                "The same `odist train` command continues it."
            )
        results = self._json("results.json", required=("metrics", "groups", "split"))
        for name, value in results["metrics"].items():
            if value is not None and not isinstance(value, int | float | list):
                raise Damaged(f"{self.path / 'results.json'}: damaged ({name} is not a number). {CONTINUE}")
        return results

    @property
    def missing_groups(self) -> list[int]:
        """Groups that were lost while the others finished; empty for a run without results."""
        there = os.path.lexists(self.path / "results.json")
        return [int(group) for group in self.results.get("missing_groups", [])] if there else []

    def missing_words(self) -> str:
        """Which groups were lost and who predicts for them, as a sentence; empty if none was."""
        missing = self.missing_groups
        if not missing:
            return ""
        who = f"group {missing[0]} is" if len(missing) == 1 else f"groups {', '.join(map(str, missing))} are"
        predictor = self.results.get("predictor")
        by = "the mean of the others predicts" if predictor == "mean" else f"{predictor} predicts"
        return f"{self.path}: {who} missing: {by}. The same `odist train` command trains what is missing."

    @property
    def untaught_groups(self) -> list[int]:
        """Groups that should have learnt from their peers and never had a teacher; empty for a run without results."""
        if not (self.path / "results.json").is_file():
            return []
        groups = enumerate(self.results["groups"])  # None for a group that was lost
        return [group for group, own in groups if isinstance(own, dict) and own.get("taught") is False]

    @property
    def finished(self) -> bool:
        """Whether all groups are trained and the results are there."""
        return self.status.get("state") == "finished" and os.path.lexists(self.path / "results.json")

    def _json(self, name: str, *, required: tuple[str, ...] = ()) -> dict[str, Any]:
        path = self.path / name
        if not os.path.lexists(path):
            return {}
        return read_json(path, cure=CONTINUE, kinds=KINDS[name], required=required)

    def check_records(self) -> None:
        """Read the small files that say what the run is and its state. Raises Damaged for the first unsound one."""
        for name in MARKS:
            if not os.path.lexists(self.path / name):
                raise Damaged(f"{self.path / name}: missing. {CONTINUE}")
        _ = self.config, self.env, self.status, self.horizon, self.missing_groups

    def check(self) -> None:
        """Read everything that churn and figures need. Raises Damaged for the first file that is not sound."""
        self.check_records()
        self.check_results()
        self.rows()

    def check_results(self) -> None:
        """Read results and predictions if they exist. Raises Damaged for the first file that is not sound."""
        if os.path.lexists(self.path / "results.json"):
            _ = self.results
            for meta in self.path.glob("predictions/[!.]*/meta.json"):
                self.predictions(meta.parent.name)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Replace a JSON file of the folder. Raises CannotWrite if the disk is full."""
        with writing(self.path / name):
            write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    def set_status(self, **fields: Any) -> None:
        """Update some fields of status.json and its time; a damaged one is replaced."""
        try:
            known = self.status
        except Damaged:
            known = {}
        self.write_json("status.json", {**known, **fields, "updated": time.time()})

    def rows(self) -> tuple[list[dict[str, Any]], int]:
        """The rows of metrics.jsonl as they were written, and the number of lines that cannot be read.

        Killed processes leave a few such lines. Raises Damaged if no line can be read.
        """
        path = self.path / "metrics.jsonl"
        if not os.path.lexists(path):
            return [], 0
        cure = f"Remove it to lose its curves only. {CONTINUE}"
        try:
            objects, damaged = read_json_lines(path)
        except OSError as error:
            raise Damaged(f"{path}: cannot be read ({error.strerror}). {cure}") from error
        rows = [row for row in objects if is_row(row)]
        damaged += len(objects) - len(rows)
        if damaged and not rows:
            raise Damaged(f"{path}: damaged (none of {damaged} lines can be read). {cure}")
        return rows, damaged

    def metrics(self, *, kind: str | None = None) -> pd.DataFrame:
        """metrics.jsonl as a frame; `kind` is `train` or `evaluate`.

        A continued run writes the rows after its checkpoint again: the last row of a step counts.
        """
        import pandas as pd

        frame = pd.DataFrame(self.rows()[0])
        if not frame.empty:
            frame = frame.drop_duplicates(["kind", "group", "step"], keep="last", ignore_index=True)
        if kind is not None and not frame.empty:
            frame = frame[frame["kind"] == kind].reset_index(drop=True)
        return frame

    def checkpoint_root(self, group: int) -> Path:
        return self.path / "checkpoints" / f"group-{group}"

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of all groups; a finished run keeps its predictions and results."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def checkpoint_steps(self, group: int) -> list[int]:
        """Steps of the complete checkpoints of `group`, rising."""
        root = self.checkpoint_root(group)
        if not root.is_dir():
            return []
        found = (STEP_FOLDER.match(child.name) for child in root.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def beat_path(self, group: int) -> Path:
        """The file whose time says when a group that trains in processes of its own was last at work."""
        return self.path / "logs" / f".group-{group}.beat"

    def prediction_root(self, split: str) -> Path:
        return self.path / "predictions" / split

    def group_results(self, group: int) -> Path:
        """The file that a group leaves when it is trained and its predictions are there."""
        return self.prediction_root("validation") / f"group-{group}.json"

    def evaluation_root(self, group: int) -> Path:
        """Where `train.keep_evaluations` leaves predictions until the run is finished, one file a step."""
        return self.path / "evaluations" / f"group-{group}"

    def predictions(
        self, split: str = "validation", *, last_weights: bool = False, predictor: str | None = None
    ) -> Predictions:
        """What the run predicts: group 0's probabilities, or the mean over groups for an ensemble.

        Which of the two is written in `predictions/<split>/meta.json` by the run itself
        (Anil et al. 2018, section 3.5: one copy of a codistilled pair, fixed in advance, predicts).
        In a run that has lost groups the first sound one predicts, or the mean of the sound ones.

        last_weights: what the weights themselves predict in a run whose averaged weights do
        predictor: `mean` of all groups, or `copies`: the first sound one; None: what the run was made for
        Raises UserError before there are predictions, Damaged for files that are not sound.
        """
        root = self.prediction_root(split)
        if not os.path.lexists(root / META):
            raise UserError(
                f"{self.path}: no predictions on the {split} part yet (state {self.status.get('state', 'unknown')}). "
                "A finished run has them; the same `odist train` command continues it."
            )
        return read_predictions(root, last_weights=last_weights, predictor=predictor, cure=CONTINUE)

    def group_predictions(self, split: str = "validation", *, last_weights: bool = False) -> dict[int, np.ndarray]:
        """Probabilities of every group that has left its own. last_weights: as in `predictions`"""
        root, groups = self.prediction_root(split), range(int(self.config.get("num_groups", 1)))
        return read_group_predictions(root, groups, last_weights=last_weights, cure=CONTINUE)


def is_row(content: dict[str, Any]) -> bool:
    """Whether a JSON object is a row of metrics.jsonl: it has a kind, a group and a step."""
    return isinstance(content.get("kind"), str) and all(type(content.get(key)) is int for key in ("group", "step"))
