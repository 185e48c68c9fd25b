"""`odist predict` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odist.cli.prepare_progress import PrepareProgress
from odist.cli.printing import as_json
from odist.errors import UserError
from odist.launch.stop import Stop
from odist.run.folder import Run

SUFFIXES = (".csv", ".parquet")


def predict(path: Path, inputs: list[str], *, output: Path, json: bool, **how: Any) -> None:
    """Predict raw rows and print what was read and written; see `odist.deploy.predict.predict`."""
    run = Run.open(path)
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: expected a name that ends in {' or '.join(SUFFIXES)}.")
    from odist.deploy import predict as deploy

    with Stop().listening() as stop, PrepareProgress() as progress:
        report = deploy.predict(run, inputs, output=output, progress=progress, stop=stop, **how)
    if json:
        print(as_json(report))
        return
    print(
        f"{report['rows']:,} rows predicted by member {report['member']} of {run.path}, step {report['step']}: {output}"
    )
    if report["bad_rows"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report["bad_rows"].items())
        print(f"left out: {sum(report['bad_rows'].values()):,} that cannot be read: {reasons}")
        for place in report["bad_located"]:
            print(f"  {place}")
