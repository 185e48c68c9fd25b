"""The folder of what a run predicts on one split: an array for every group, and which of them predicts for the run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from odist.errors import Damaged
from odist.run.damage import Kinds, read_array, read_json

if TYPE_CHECKING:
    import numpy as np

META = "meta.json"
# Ends the files of what the last weights predict, in runs whose averaged weights predict.
LAST_WEIGHTS_FILE = "-last-weights.npy"
LAST_WEIGHTS = "last_weights_"  # begins the names of their metrics in rows of the log


@dataclass(frozen=True)
class Predictions:
    """What one run predicts on one split.

    probabilities: float array, [rows] for a binary task, [rows, classes] otherwise
    targets: [rows]
    fingerprint: names the rows and their order; equal for two runs that may be compared
    bayes: [rows] optimal probabilities where the generator knows them
    predictor: `mean` of the groups, or `group-N`; missing_groups: those that the run has lost
    """

    probabilities: np.ndarray
    targets: np.ndarray
    fingerprint: str
    bayes: np.ndarray | None = None
    predictor: str = "group-0"
    missing_groups: tuple[int, ...] = ()


def read_predictions(root: Path, *, cure: str, last_weights: bool = False, predictor: str | None = None) -> Predictions:
    """Read the probabilities of the group that predicts for a run, or their mean over all groups that it has.

    root: the folder; cure: sentence that ends the message of Damaged
    last_weights: what the weights themselves predict in a run whose averaged weights do
    predictor: `mean` of all groups, or `copies`: the first sound one; None: what the run was made for
    Raises Damaged for the first file that is not sound.
    """
    import numpy as np

    path = root / META
    kinds: Kinds = {"predictor": str, "num_groups": int, "fingerprint": str, "missing_groups": list}
    meta = read_json(path, cure=cure, kinds=kinds, required=("predictor", "num_groups", "fingerprint"))
    missing = meta.get("missing_groups", [])
    sound = [group for group in range(meta["num_groups"]) if group not in missing]
    if predictor == "copies":
        sound = sound[:1]
    elif meta["predictor"] != "mean" and predictor != "mean":
        sound = [int(number) for number in re.findall(r"^group-(\d{1,6})$", meta["predictor"])]
    if not sound:
        raise Damaged(f"{path}: damaged (no group predicts). {cure}")
    targets = read_array(root / "targets.npy", cure=cure)
    end = LAST_WEIGHTS_FILE if last_weights else ".npy"
    arrays = [read_array(root / f"group-{group}{end}", cure=cure, rows=len(targets)) for group in sound]
    if len({array.shape for array in arrays}) > 1:
        raise Damaged(f"{root}: damaged (its groups predict different shapes). {cure}")
    bayes = root / "bayes.npy"
    return Predictions(
        probabilities=np.mean(np.stack([array.astype(np.float64) for array in arrays]), axis=0),
        targets=np.array(targets),
        fingerprint=meta["fingerprint"],
        bayes=np.array(read_array(bayes, cure=cure, rows=len(targets))) if os.path.lexists(bayes) else None,
        predictor=meta["predictor"],
        missing_groups=tuple(missing),
    )


def read_group_predictions(
    root: Path, groups: Iterable[int], *, cure: str, last_weights: bool = False
) -> dict[int, np.ndarray]:
    """Read the probabilities of each of `groups` that has left its own; arguments as of `read_predictions`."""
    end = LAST_WEIGHTS_FILE if last_weights else ".npy"
    paths = {group: root / f"group-{group}{end}" for group in groups}
    return {
        group: read_array(path, cure=cure).astype("float64") for group, path in paths.items() if os.path.lexists(path)
    }
