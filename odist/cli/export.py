"""`odist export` on the command line."""

from __future__ import annotations

from pathlib import Path

from odist.cli.printing import as_json
from odist.errors import UserError
from odist.run.folder import Run

HOW_TO_LOAD = {
    "safetensors": "sys.path.insert(0, {path!r}); import model; model.load({path!r})",
    "onnx": "onnxruntime.InferenceSession({path!r} + '/model.onnx')",
    "torch": "torch.export.load({path!r} + '/model.pt2').module()",
    "hf": "transformers.AutoModel.from_pretrained({path!r}, trust_remote_code=True)",
}


def export(path: Path, *, format_name: str, member: str | None, output: Path | None, json: bool) -> None:
    """Export a run and print where it is and how it is loaded; see `odist.deploy.export.export`."""
    run = Run.open(path)
    if output is not None and output.resolve() == run.path.resolve():
        raise UserError(f"--output {output}: this is the run itself. Name a folder of its own.")
    from odist.deploy import export as deploy

    record = deploy.export(run, format_name=format_name, member=member, output=output)
    if json:
        print(as_json(record))
        return
    who = (
        "the mean of groups " + ", ".join(map(str, record["groups"]))
        if len(record["groups"]) > 1
        else f"group {record['groups'][0]}"
    )
    what = f"{who}, {'averaged weights' if record['averaged'] else 'last weights'}"
    print(f"{record['path']}: {what}, step {record['step']}")
    for one in record["inputs"]:
        print(f"  {one['name']}: {one['dtype']} {one['shape']}: {one['meaning']}")
    print(f"load it: {HOW_TO_LOAD[format_name].format(path=record['path'])}")
