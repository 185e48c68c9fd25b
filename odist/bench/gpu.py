"""`odist bench gpu`: training speed and memory of the three paper-scale models on one device, as a page.

The engine trains as in a run, on batches that lie ready in the host's memory: copies to the device are part of a step,
reading and decoding are not. Speeds are shown beside the speed of a plain matrix product on the same device.
"""

from __future__ import annotations

import itertools
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from odist.bench.engine import Engine
from odist.claims.table import markdown_table
from odist.config.composed import composed
from odist.config.read import load
from odist.config.schema import Config
from odist.data.loader import Loader
from odist.engine.devices import require
from odist.engine.precision import in_bf16
from odist.engine.problem import forward_flops, set_up_torch
from odist.errors import OdistError
from odist.files import write_atomically
from odist.run import provenance

COLUMNS = {
    "model": "model",
    "how": "precision, teacher",
    "rate": "samples/s",
    "step": "ms a step",
    "flops": "TFLOP/s",
    "share": "of the product's",
    "memory": "memory, GB",
}
WORDS = {  # of a run: those of all, then of the task
    "criteo": ("task=criteo", "task.synthetic.rows=2000000"),
    "lm": ("task=lm", "task.synthetic.rows=100000", "task.synthetic.validation_rows=64"),
    "imagenet": ("task=imagenet", "task.synthetic.rows=100000"),
}
TINY = {  # the same code in seconds, on any machine
    "criteo": ("train.batch=8",),
    "lm": ("train.batch=4",),
    "imagenet": ("train.batch=4",),
}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    scale: of the models; workers: virtual workers of a step; steps: of one measurement, of which there are `rounds`
    product: rows and columns of the matrices; ways: of training: precision, whether compiled, whether a teacher is heard
    """

    scale: str = "paper"
    workers: int = 4
    steps: int = 10
    rounds: int = 3
    product: int = 8192
    ways: tuple[tuple[str, bool, bool], ...] = (
        ("fp32", False, False),
        ("bf16", False, False),
        ("bf16", False, True),
        ("bf16", True, False),
    )


SMALL = Size(
    scale="smoke", workers=2, steps=1, rounds=2, product=256, ways=(("fp32", False, True), ("bf16", False, False))
)


@dataclass(frozen=True)
class Measured:
    """One way of training one model.

    examples: of a step; seconds: of a step, one measurement each; flops: of a step; memory: bytes, the most at a time
    """

    task: str
    config: Config
    taught: bool
    examples: int
    seconds: list[float]
    flops: float
    memory: int | None


def run(
    *, device: str = "cuda", output: Path | None = None, size: Size | None = None, say: Callable[[str], None]
) -> Path | None:
    """Measure and write NAME.md, by the name of the device, into the folder `output`; return its path.

    device: cuda, or cpu with small models, which tries the measurement and says nothing of the machine
    Raises UserError if the machine has no such device.
    """
    require(device, asked=f"--device {device}", instead="--device cpu, which tries this with small models")
    size = size or (Size() if device == "cuda" else SMALL)
    peaks = {name: _product(device, dtype, size) for name, dtype in DTYPES.items()}
    found: list[Measured] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as folder:
        for number, (task, way) in enumerate(itertools.product(WORDS, size.ways)):
            config = _config(task, device, size, *way)
            say(f"{task}: {_how(config, taught=way[2])}")
            try:
                found.append(_measure(Path(folder) / str(number), task, config, taught=way[2], size=size))
            except (RuntimeError, OdistError) as error:  # out of memory, or what torch cannot compile
                failures.append(f"{task}, {_how(config, taught=way[2])}: {str(error).strip().splitlines()[0][:200]}")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    text = page(found, failures, name=name, peaks=peaks, size=size)
    if output is None:
        print(text)
        return None
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}.md"
    write_atomically(path, text)
    return path


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _config(task: str, device: str, size: Size, precision: str, compiled: bool, taught: bool) -> Config:
    words = [*WORDS[task], f"scale={size.scale}", f"workers={size.workers}", f"launch.device={device}"]
    words += [f"train.precision={precision}", f"model.compile={str(compiled).lower()}", "run.progress=false"]
    words += TINY[task] if size.scale == "smoke" else ()
    words += (
        ["algorithm=codistill", "algorithm.burn_in=0", "exchange=memory", "exchange.timing=lockstep"]
        if taught
        else ["algorithm=sync"]
    )
    content = composed(words)
    assert content is not None, words
    # A reload a measurement; the paper has one in 50 steps of language.
    content["exchange"]["interval"] = size.steps * size.workers * content["train"]["batch"]
    config = load(content)
    config = replace(config, train=replace(config.train, passes=1e6, max_examples=None, evaluate_every=0))
    return replace(config, launch=replace(config.launch, device="cuda:0" if device == "cuda" else device))


def _measure(folder: Path, task: str, config: Config, *, taught: bool, size: Size) -> Measured:
    set_up_torch(config)
    on_gpu = config.launch.device != "cpu"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine = Engine(folder, config)
    try:
        [trainer] = engine.trainers
        ready = [trainer.loader.build(step) for step in range(2)]
        trainer.loader.close()
        trainer.loader = Loader(lambda step: ready[step % 2], num_steps=trainer.clock.num_steps, prefetch=0)
        if taught:
            engine.offer(steps=size.steps * (size.rounds + 2))
        forward = forward_flops(config, engine.task, trainer.model)

        def turn() -> float:
            began = time.perf_counter()
            engine.train(size.steps)
            if on_gpu:
                torch.cuda.synchronize()
            return (time.perf_counter() - began) / size.steps

        turn()
        seconds = [turn() for _ in range(size.rounds)]
    finally:
        engine.close()
    examples = trainer.clock.examples_per_step
    flops = forward * examples * (3 + (1 if taught else 0))
    memory = torch.cuda.max_memory_allocated() if on_gpu else None
    return Measured(task, config, taught, examples, seconds, flops, memory)


def _product(device: str, dtype: torch.dtype, size: Size) -> float:
    """Operations a second of the product of two square matrices, the most of some measurements."""
    left, right = (torch.randn(size.product, size.product, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        began = time.perf_counter()
        for _ in range(size.steps):
            left.mm(right)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, size.steps * 2.0 * size.product**3 / (time.perf_counter() - began))
    return best


def _how(config: Config, *, taught: bool) -> str:
    model: Any = config.model
    words = ["bf16" if in_bf16(config) else "fp32", *(["compiled"] if model.compile else [])]
    return ", ".join([*words, "one teacher" if taught else "no teacher"])


def page(found: Sequence[Measured], failures: Sequence[str], *, name: str, peaks: dict[str, float], size: Size) -> str:
    """The page of one device."""
    rows = []
    for one in found:
        seconds = statistics.median(one.seconds)
        speed = one.flops / seconds
        peak = peaks["bf16" if in_bf16(one.config) else "fp32"]
        rows.append(
            {
                "model": f"{one.task}: {one.config.model.name}, {size.workers} x {one.examples // size.workers}",
                "how": _how(one.config, taught=one.taught),
                "rate": f"{one.examples / seconds:,.0f}",
                "step": f"{1000 * seconds:,.1f}",
                "flops": f"{speed / 1e12:.3g}",
                "share": f"{100 * speed / peak:.1f} %",
                "memory": "–" if one.memory is None else f"{one.memory / 1e9:.1f}",
            }
        )
    hardware, versions = provenance.hardware(), provenance.versions()
    product = ", ".join(f"{peak / 1e12:.3g} in {kind}" for kind, peak in peaks.items())
    lines = [
        f"# {name}",
        "",
        f"Written by `odist bench gpu`, models of scale={size.scale}.",
        "",
        markdown_table(COLUMNS, rows),
        f"A step has virtual workers x examples of each (a sequence of the language model is one sample), on batches that lie "
        f"ready in the host's memory; medians of {size.rounds} times {size.steps} steps. Operations are three forwards an "
        f"example, four with a teacher, beside those of a product of two matrices of {size.product} rows and columns: {product} "
        "TFLOP/s.",
        "",
        *(f"Not measured: {failure}\n" for failure in failures),
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB; torch {versions['torch']}, "
        f"Python {versions['python']}, odist {versions['odist']}.",
    ]
    return "\n".join(lines) + "\n"
