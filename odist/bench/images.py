"""The rows of `odist bench images`: decoding and cropping of JPEG, and training of ResNet-8 on images of 32 pixels.

About a minute, every ratio from one interleaved run. Goals come from measurements of what the machine allows; they are
shown beside the numbers and enforced by nobody.
"""

from __future__ import annotations

import io
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from odist.bench.engine import Engine, batches_of
from odist.bench.rounds import Arm, Row, compare, interleave
from odist.config.read import load
from odist.config.schema import Config
from odist.data.augment import train_batch
from odist.data.images import CLASSES, ImageStore, store_record
from odist.data.jpeg import find_decoder
from odist.engine.wiring import build_model, build_task, set_up_torch
from odist.errors import UserError
from odist.files import save_array, write_atomically
from odist.prepare.images.prepare import ImageOptions, prepare_imagenet
from odist.tasks.base import Batch, Task

NUM_CLASSES = 10
VALIDATION_ROWS = 128
# Quality and chroma subsampling: the usual ones of the web, and those of most of ImageNet's training files.
KINDS = {"web": (90, "4:2:0"), "imagenet": (96, "4:4:4")}
SHORT_SIDE = 256  # as of `odist prepare imagenet --short-side 256`, from the first kind
BLOTCHES = ((12, 30.0), (40, 20.0), (120, 12.0))  # of a photograph: how many from top to bottom, standard deviation
NOISE = (2.0, 12.0)  # standard deviation: of the smoothest photograph, of the noisiest


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement.

    photographs: JPEG files of each kind, height and width in pixels; crop: side of what is cut out of them
    rows: images of 32 pixels; interval: steps of a turn, and between two reloads of the teacher
    """

    photographs: int = 96
    height: int = 375
    width: int = 500
    crop: int = 224
    rows: int = 8_192
    batch: int = 128
    interval: int = 8


def measure(*, rounds: int, say: Callable[[str], None], size: Size | None = None) -> list[Row]:
    """Measure every row, in a temporary folder that is gone afterwards.

    say: told what is going on, and what is left out
    """
    size = size or Size()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as name:
        folder = Path(name)
        try:
            find_decoder("fast")
        except UserError as error:
            say(f"decoding: left out, {error}")
        else:
            say(f"decoding: {rounds} rounds of Pillow and the fast decoder, {size.photographs} files of each kind")
            rows += _decoding(folder, size, rounds=rounds)
        say(f"ResNet-8: {rounds} rounds of hand-written loops, trainer and teacher")
        rows += _training(folder, size, rounds=rounds)
    return rows


def write_photographs(folder: Path, size: Size) -> None:
    """Write the same images as JPEG of every kind, each kind into a folder of its name and there into one class.

    They are ramps of colour below blotches of several sizes and noise, and have about as many bytes as photographs.
    """
    from PIL import Image

    random = np.random.default_rng(0)
    down, right = np.mgrid[0 : 1 : size.height * 1j, 0 : 1 : size.width * 1j][..., None].astype(np.float32)
    for kind in KINDS:
        (folder / kind / "class").mkdir(parents=True)
    for number in range(size.photographs):
        colour, below, beside = random.normal([[128], [0], [0]], 40, (3, 3)).astype(np.float32)
        pixels = colour + below * down + beside * right
        for count, deviation in BLOTCHES:
            blotches = random.standard_normal((count, count * size.width // size.height), dtype=np.float32)
            grown = Image.fromarray(blotches).resize((size.width, size.height), Image.Resampling.BICUBIC)
            pixels += deviation * np.asarray(grown)[..., None]
        pixels += random.uniform(*NOISE) * random.standard_normal((size.height, size.width, 1), dtype=np.float32)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        for kind, (quality, subsampling) in KINDS.items():
            data = io.BytesIO()
            image.save(data, "JPEG", quality=quality, subsampling=subsampling)
            (folder / kind / "class" / f"{number}.jpg").write_bytes(data.getvalue())


def _decoding(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    write_photographs(folder, size)
    stores = {}
    for name, kind, short_side in (("web", "web", None), ("imagenet", "imagenet", None), ("short", "web", SHORT_SIDE)):
        options = ImageOptions(validation_fraction=0.0, processes=1, short_side=short_side)
        prepare_imagenet([str(folder / kind)], output=folder / f"{name}-store", options=options)
        stores[name] = ImageStore.open(folder / f"{name}-store")

    def run(_: int, *, store: ImageStore, decoder: str) -> None:
        for ids in np.array_split(np.arange(size.photographs), -(-size.photographs // 32)):
            train_batch(store, ids, size=size.crop, seed=0, crop="resized", decoder=decoder)

    arms = [Arm(f"{name} {decoder}", partial(run, store=store, decoder=decoder), 1)
            for name, store in stores.items() for decoder in ("pillow", "fast")]  # fmt: skip
    _warm_up(arms)
    timings = interleave(arms, rounds=rounds)
    rows = []
    for name, store in stores.items():
        what = f"short side {SHORT_SIDE}" if name == "short" else "{} x {}, quality {}, {}".format(
            size.width, size.height, *KINDS[name])  # fmt: skip
        mean = (store.path / "images-train.bin").stat().st_size / size.photographs / 1000
        rows.append(compare(timings, f"{name} pillow", f"{name} fast", name=f"decode_{name}", batch=size.photographs,
                            goal=2.0, at_least=True, text=f"JPEG to random crops of {size.crop} by Pillow / by the fast decoder, "
                            f"{what}, {mean:.0f} kB"))  # fmt: skip
    return rows


def write_store(path: Path, *, rows: int) -> None:
    """Write a decoded store of random images of 32 pixels in ten classes; path: folder to make."""
    path.mkdir(parents=True)
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", rows), ("validation", VALIDATION_ROWS)):
        save_array(path / f"images-{split}.npy", random.integers(256, size=(count, 32, 32, 3), dtype=np.uint8))
        save_array(path / f"labels-{split}.npy", random.integers(NUM_CLASSES, size=count))
        splits[split] = {"images": count, "bytes": count * 32 * 32 * 3, "sha256": "benchmark"}
    classes = [str(number) for number in range(NUM_CLASSES)]
    write_atomically(path / CLASSES, json.dumps(classes))
    write_atomically(
        path / "store.json", json.dumps(store_record(classes=classes, decoded=32, splits=splits, options={}))
    )


def make_config(
    store: Path, *, batch: int, interval: int, peers: bool = False, channels_last: bool = True, bf16: bool = False
) -> Config:
    """The configuration of one arm: ResNet-8, SGD with momentum, exchange in memory.

    batch: examples of a step; interval: steps between two reloads of the teacher and two rows of the log
    peers: whether a second group teaches, from the first reload on; others: see ResNetConfig, as scale=small has them
    """
    content: dict[str, Any] = {
        "scale": "small",
        "num_groups": 2 if peers else 1,
        "task": {"name": "imagenet"},
        "data": {"name": "prepared", "path": str(store)},
        "model": {"name": "resnet", "depth": 8, "channels_last": channels_last, "bf16": bf16},
        "optim": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0001},
        "algorithm": {"name": "bench", "teacher": "peers" if peers else "none", "average_every": batch},
        "exchange": {"name": "memory", "interval": interval * batch},
        "launch": {"name": "inline", "threads": 1},
        "train": {"batch": batch, "passes": 1e6, "log_every": interval * batch},
        "run": {"progress": False},
    }
    return load(content)


class HandLoop:
    """The same training in ten lines, on batches that are ready: nothing is logged, nothing can be continued.

    batches: of all steps that will be made
    """

    def __init__(self, config: Config, task: Task, batches: Sequence[Batch]) -> None:
        self.model = build_model(config, task, group=0)
        self._batches = itertools.cycle(batches)
        optim = config.optim
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=optim.lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
            fused=True,
        )

    def train(self, steps: int) -> None:
        """Make `steps` steps."""
        for batch in itertools.islice(self._batches, steps):
            loss = F.cross_entropy(self.model(*batch.inputs), batch.targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def _training(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    store, batch, turn, steps = folder / "store", size.batch, size.interval, (rounds + 2) * size.interval
    write_store(store, rows=size.rows)
    make = partial(make_config, store, batch=batch, interval=turn)
    config = make()
    set_up_torch(config)
    task = build_task(config)
    start = turn - 2
    _, batches = batches_of(config, task, start=start, steps=steps)
    with ExitStack() as stack:
        engines = []
        for label, one in (("plain", config), ("taught", make(peers=True))):
            engine = Engine(folder / label, one, start=start)
            stack.callback(engine.close)
            if one.num_groups == 2:
                engine.offer(steps=steps)
            engines.append(engine)
        loops = {"float32": make(channels_last=False), "channels_last": config, "bf16": make(bf16=True)}
        hands = {name: HandLoop(one, build_task(one), batches) for name, one in loops.items()}
        arms = [Arm(name, hand.train, turn) for name, hand in hands.items()]
        arms += [Arm("trainer", engines[0].train, turn), Arm("codistillation", engines[1].train, turn)]
        _warm_up(arms)
        timings = interleave(arms, rounds=rounds)
    what = f"ResNet-8, 32 pixels, batch {batch}"
    return [
        compare(timings, "float32", "channels_last", name="channels_last", batch=batch,
                text=f"step in float32 / in float32 with channels_last, {what}"),
        compare(timings, "float32", "bf16", name="bf16_channels_last", batch=batch,
                text="step in float32 / in bf16 with channels_last"),
        compare(timings, "channels_last", "bf16", name="bf16", batch=batch, goal=1.6, at_least=True,
                text="step in float32 / in bf16, both with channels_last"),
        compare(timings, "trainer", "channels_last", name="trainer", batch=batch, goal=1.03,
                text="trainer / hand-written loop, float32 with channels_last"),
        compare(timings, "codistillation", "trainer", name="codistillation", batch=batch, goal=1.36,
                text=f"step with one fp32 teacher / plain step, the same, reload every {turn} steps"),
    ]  # fmt: skip


def _warm_up(arms: Sequence[Arm]) -> None:
    for arm in arms:
        arm.run(2)
