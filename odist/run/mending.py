"""What `odist train` mends in a damaged run folder before it continues the run.

Files whose content is known from elsewhere are written again: config.yaml from the command (env.json knows its hash),
env.json from the copy in each checkpoint, status.json and horizon.json by training, results and predictions from the
last checkpoint. Damaged files are set aside, never deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from odist.config.identity import to_dict
from odist.config.read import load
from odist.config.schema import Config
from odist.errors import Damaged, UserError
from odist.files import write_atomically
from odist.run import provenance
from odist.run.damage import set_aside, writing
from odist.run.digest import written_env
from odist.run.folder import Run, step_name

Say = Callable[[str], None]


def mend_identity(run: Run, config: Config, *, digest: str, data_fingerprint: str | None, say: Say) -> None:
    """Write env.json and config.yaml again if they are missing or damaged.

    digest: hash of `config`, the command's; data_fingerprint: of its prepared data
    Raises Damaged if it is unknown what they held, or if they belonged to a different command.
    """
    import yaml

    env = _mended_env(run, config, digest=digest, data_fingerprint=data_fingerprint, say=say)
    try:
        load(run.config)
    except UserError as error:
        if env.get("config_hash") != digest:
            reason = str(error) if isinstance(error, Damaged) else f"{run.path / 'config.yaml'}: {error}"
            raise Damaged(
                f"{reason} This command has a different configuration; the command that began the run is in overrides.txt."
            ) from error
        path = run.path / "config.yaml"
        aside = f"; the damaged one is {set_aside(path).name}" if os.path.lexists(path) else ""
        with writing(path):
            write_atomically(path, yaml.safe_dump(to_dict(config), sort_keys=False))
        say(
            f"{path} was missing or damaged: written again from this command, which is the one that began the run{aside}."
        )


def _mended_env(run: Run, config: Config, *, digest: str, data_fingerprint: str | None, say: Say) -> dict[str, Any]:
    path = run.path / "env.json"
    try:
        if env := run.env:
            return env
    except Damaged:
        pass
    folders = [
        run.checkpoint_root(group) / step_name(step)
        for group in range(config.num_groups)
        for step in reversed(run.checkpoint_steps(group))
    ]
    found = next((env for env in map(written_env, folders) if env), None)
    if found is None and folders:
        raise Damaged(
            f"{path}: missing or damaged, and no checkpoint holds a copy, so the data and settings that began this run "
            f"are unknown. Restore the file from a copy, or remove {run.path} and type the command again."
        )
    aside = f"; the damaged one is {set_aside(path).name}" if os.path.lexists(path) else ""
    env = found or provenance.environment(config_hash=digest, data_fingerprint=data_fingerprint)
    run.write_json("env.json", env)
    say(
        f"{path} was missing or damaged: written again {'from a checkpoint' if found else 'before any training'}{aside}."
    )
    return env


def mend_state(run: Run, *, say: Say) -> None:
    """Set aside damaged files that training writes again: status, horizon, log of metrics, results and predictions."""
    for half in run.path.glob(".status.json.*.tmp"):  # of a command that was killed while it wrote
        half.unlink(missing_ok=True)
    for name, read in (
        ("status.json", lambda: run.status),
        ("horizon.json", lambda: run.horizon),
        ("metrics.jsonl", run.rows),
    ):
        try:
            read()
        except Damaged as error:
            say(f"{error} Set aside as {set_aside(run.path / name).name}; training writes it again.")
    try:
        run.check_results()
    except Damaged as error:
        say(f"{error} Results and predictions are made again from the last checkpoint.")
        for path in (run.path / "results.json", run.prediction_root("validation")):
            if os.path.lexists(path):
                set_aside(path)
