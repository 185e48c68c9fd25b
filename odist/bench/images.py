"""The rows of `odist bench images`: decoding and cropping of JPEG, and training of ResNet-8 on images of 32 pixels.

About a minute, every ratio from one interleaved run. Goals come from measurements of what the machine allows.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from odist.bench import engine
from odist.bench.engine import HandLoop, batches_of, engines
from odist.bench.rounds import Arm, Ratio, Row, compare, interleave
from odist.config.schema import Config
from odist.data.augment import train_batch
from odist.data.images import CLASSES, ImageStore, store_record
from odist.data.jpeg import find_decoder
from odist.engine.problem import build_model, build_task, set_up_torch
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

    say: told what is going on, and what is skipped
    """
    size = size or Size()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as name:
        folder = Path(name)
        try:
            find_decoder("fast")
        except UserError as error:
            say(f"decoding: skipped, {error}")
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

    arms = [
        Arm(f"{name} {decoder}", partial(run, store=store, decoder=decoder), 1)
        for name, store in stores.items()
        for decoder in ("pillow", "fast")
    ]
    timings = interleave(arms, rounds=rounds, warm_up=1)
    rows = []
    for name, store in stores.items():
        quality, subsampling = KINDS.get(name, ("", ""))
        what = f"{size.width} x {size.height}, quality {quality}, {subsampling}"
        if name == "short":
            what = f"short side {SHORT_SIDE}"
        mean = (store.path / "images-train.bin").stat().st_size / size.photographs / 1000
        text = f"JPEG to random crops of {size.crop} by Pillow / by the fast decoder, {what}, {mean:.0f} kB"
        ratio = Ratio(f"decode_{name}", f"{name} pillow", f"{name} fast", text, goal=2.0, at_least=True)
        rows.append(compare(timings, ratio, batch=size.photographs))
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
    """The configuration of one arm: ResNet-8 and SGD with momentum; see `odist.bench.engine.make_config`.

    channels_last, bf16: see ResNetConfig, as scale=small has them
    """
    return engine.make_config(
        store,
        task="imagenet",
        model={"name": "resnet", "depth": 8, "channels_last": channels_last, "bf16": bf16},
        optim={"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0001},
        batch=batch,
        scale="small",
        interval=interval,
        log=interval,
        num_groups=2 if peers else 1,
        peers=peers,
    )


def hand_loop(config: Config, task: Task, batches: Sequence[Batch]) -> HandLoop:
    """A loop that does the engine's work."""
    model, optim = build_model(config, task, group=0), config.optim
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    return HandLoop(model, batches, loss=F.cross_entropy, optimizers=[optimizer])


def _training(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    store, batch, turn, steps = folder / "store", size.batch, size.interval, (rounds + 2) * size.interval
    write_store(store, rows=size.rows)
    make = partial(make_config, store, batch=batch, interval=turn)
    config = make()
    set_up_torch(config)
    task = build_task(config)
    start = turn - 2
    _, batches = batches_of(config, task, start=start, steps=steps)
    loops = {"float32": make(channels_last=False), "channels_last": config, "bf16": make(bf16=True)}
    hands = {name: hand_loop(one, build_task(one), batches) for name, one in loops.items()}
    taught = make(peers=True)
    with engines(folder, {"plain": config, "taught": taught}, start=start, offered=steps) as (plain, teacher):
        arms = [Arm(name, hand.train, turn) for name, hand in hands.items()]
        arms += [Arm("trainer", plain.train, turn), Arm("codistillation", teacher.train, turn)]
        timings = interleave(arms, rounds=rounds, warm_up=2)
    what = f"ResNet-8, 32 pixels, batch {batch}"
    layouts = f"step in float32 / in float32 with channels_last, {what}"
    teaching = f"step with one fp32 teacher / plain step, the same, reload every {turn} steps"
    ratios = [
        Ratio("channels_last", "float32", "channels_last", layouts),
        Ratio("bf16_channels_last", "float32", "bf16", "step in float32 / in bf16 with channels_last"),
        Ratio(
            "bf16", "channels_last", "bf16", "step in float32 / in bf16, both with channels_last", 1.6, at_least=True
        ),
        Ratio("trainer", "trainer", "channels_last", "trainer / hand-written loop, float32 with channels_last", 1.03),
        Ratio("codistillation", "codistillation", "trainer", teaching, 1.36),
    ]
    return [compare(timings, ratio, batch=batch) for ratio in ratios]
