"""`odist export`: what was exported predicts, in a process that has no odist, what the run predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import odist
from test_eval import QUICK

from odist.config.read import load
from odist.engine.problem import build_task
from odist.run.folder import Run

SMALL = ("train.passes=1", "train.evaluate_every=0", "train.checkpoint_every=0")

# Loads every export without odist and writes what it predicts: [rows], or [rows, classes]; of tokens, of the correct one.
ELSEWHERE = """
import importlib.util, json, sys
import numpy as np

sys.modules["odist"] = None  # importing it is an error


def onnx(folder):
    import onnxruntime
    session = onnxruntime.InferenceSession(folder + "/model.onnx")
    names = [one.name for one in session.get_inputs()]
    return lambda *given: session.run(None, dict(zip(names, given)))


def torch_program(folder):
    import torch
    program = torch.export.load(folder + "/model.pt2").module()
    return lambda *given: [one.numpy() for one in program(*map(torch.from_numpy, given))]


def safetensors(folder):
    import torch
    spec = importlib.util.spec_from_file_location("model", folder + "/model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    network = module.load(folder)
    return lambda *given: [one.detach().numpy() for one in network(*map(torch.from_numpy, given))]


def hf(folder):
    import torch, transformers
    names = json.load(open(folder + "/config.json"))["input_names"]
    kind = {"input_ids": "ForCausalLM", "pixel_values": "ForImageClassification"}.get(names[0], "")
    network = getattr(transformers, "AutoModel" + kind).from_pretrained(folder, trust_remote_code=True)

    def call(*given):
        tensors = list(map(torch.from_numpy, given))
        found = network(**dict(zip(names, tensors)), states=tensors[len(names):])
        return [one.detach().numpy() for one in (found.logits, found.probabilities, *found.get("states", ()))]

    return call


def predicted(call, inputs):
    if "input_ids" not in inputs:
        return call(*inputs.values())[1]
    tokens, states, found = inputs["input_ids"], [inputs[name] for name in inputs if name.startswith("state")], []
    width = 1 if states else tokens.shape[1] - 1
    for start in range(0, tokens.shape[1] - 1, width):
        _, probabilities, *states = call(tokens[:, start : start + width], *states)
        found.append(np.take_along_axis(probabilities, tokens[:, start + 1 : start + 1 + width, None], axis=2)[..., 0])
    return np.concatenate(found, axis=1)


for folder, inputs, output in json.load(sys.stdin):
    load = {"onnx": onnx, "torch": torch_program, "safetensors": safetensors, "hf": hf}[folder.split("/")[-1].split("-")[0]]
    np.save(output, predicted(load(folder), dict(np.load(inputs))))
"""
EVERY = ("safetensors", "onnx", "torch", "hf")
# Configuration, and formats: each architecture by a trace and by its own source, each format with each kind of input.
CASES = {
    "criteo": (("algorithm=ensemble", "num_groups=2"), EVERY),
    "criteo_deepfm": (("model=deepfm",), ("safetensors", "onnx")),
    "criteo_dcn_v2": (("model=dcn_v2",), ("safetensors", "torch")),
    "lm": (("train.average=ema",), ("onnx", "torch", "hf")),
    "lm_transformer": (
        ("model=transformer", "model.layers=2", "model.width=16", "model.heads=2"),
        ("onnx", "safetensors"),
    ),
    "imagenet": ((), ("onnx", "hf")),
    "imagenet_wrn": (("model=wrn", "model.depth=10", "model.width=1"), ("safetensors", "torch")),
}
LSTM_ONLY = ("model.embedding_dim=8", "model.hidden=[8]")


def rows_of(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of a run's evaluation, and what it predicted for them."""
    config = load(run.config)
    task = build_task(config)
    order = task.evaluation_order("validation", rows=None, batch_size=config.train.evaluate_batch)
    whole = run.predictions()
    if config.task.name != "lm":
        batch = task.batch(order.ids(0), "validation").to("cpu")
        names = {"criteo": ("numeric", "categorical"), "imagenet": ("pixel_values",)}[config.task.name]
        return dict(zip(names, (tensor.numpy() for tensor in batch.inputs), strict=True)), whole.probabilities
    steps = [task.batch(order.ids(step), "validation") for step in range(len(order))]
    known = order.by_lane(whole.probabilities)
    if config.model.name == "transformer":  # which sees no more than the tokens of one example
        windows = [np.concatenate([step.inputs[0][:, :1], step.targets], axis=1) for step in steps]
        return {"input_ids": np.concatenate(windows)}, np.concatenate(np.split(known, len(steps), axis=1))
    tokens = np.concatenate([steps[0].inputs[0][:, :1], *(step.targets for step in steps)], axis=1)
    states = {f"state_{n}": np.zeros((2, len(tokens), 8), dtype=np.float32) for n in range(1)}
    return {"input_ids": tokens, **states}, known


def test_every_format_predicts_without_odist_what_the_run_predicts(train: Callable[..., Run], tmp_path: Path) -> None:
    exports, expected = [], {}
    for case, (overrides, formats) in CASES.items():
        task = case.partition("_")[0]
        left_out = LSTM_ONLY if "model=transformer" in overrides else ()
        run = train(*(one for one in QUICK[task] if one not in left_out), *SMALL, *overrides, name=case)
        inputs, known = rows_of(run)
        np.savez(tmp_path / f"{case}.npz", **inputs)
        for format_name in formats:
            done = odist("export", run.path, "--format", format_name, "--json", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert done.stderr == ""
            record = json.loads(done.stdout)
            folder = run.path / "export" / format_name
            assert record["path"] == str(folder)
            assert record["member"] == ("ensemble" if "num_groups=2" in overrides else "0")
            output = tmp_path / f"{case}-{format_name}.npy"
            exports.append([str(folder), str(tmp_path / f"{case}.npz"), str(output)])
            expected[output] = known
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=json.dumps(exports), env=environment, cwd=tmp_path, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for output, known in expected.items():
        np.testing.assert_allclose(np.load(output), known, atol=2e-6, err_msg=output.name)


def test_a_member_is_a_group_the_best_one_their_average_or_all(train: Callable[..., Run], tmp_path: Path) -> None:
    run = train(*QUICK["criteo"], *SMALL, "algorithm=codistill", "train.average=swa", name="run")
    losses = [group["log_loss"] for group in run.results["groups"]]
    for member, groups, averaged in (
        ("0", [0], False),
        ("1", [1], False),
        ("best", [int(np.argmin(losses))], True),
        ("average", [0], True),
        ("ensemble", [0, 1], True),
    ):
        done = odist("export", run.path, "--member", member, "--json", cwd=tmp_path)
        record = json.loads(done.stdout)
        assert (record["groups"], record["averaged"]) == (groups, averaged)
        assert Path(record["path"]).name == f"safetensors-{member}"
    weights = {member: (run.path / f"export/safetensors-{member}/model.safetensors").read_bytes() for member in "01"}
    assert weights["0"] != weights["1"]
    assert odist("export", run.path, "--member", "0", cwd=tmp_path).returncode == 0  # again: the same place
    assert (run.path / "export/safetensors-0/model.safetensors").read_bytes() == weights["0"]
    for arguments, words in (
        (("--member", "2"), "has no such member. Choose among: 0, 1, best, average, ensemble."),
        (("--output", tmp_path), "exists and is not an export"),
    ):
        refused = odist("export", run.path, *arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr
    plain = train(*QUICK["criteo"], *SMALL, name="plain")
    refused = odist("export", plain.path, "--member", "average", cwd=tmp_path)
    assert "train.average=none" in refused.stderr
    assert not list(plain.path.glob("export/.*"))
