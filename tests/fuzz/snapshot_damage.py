"""Kinds of damage to a snapshot: its manifest, its weights, and what may lie in the folder in their place."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor


class Damaged:
    """The snapshot that is damaged: group-1/step-0000000008-*.{json,safetensors}.

    old: name of the good snapshot beside it, without ending; rng: what the damage draws from
    """

    def __init__(self, manifest: Path, old: str, rng: random.Random) -> None:
        self.manifest, self.blob, self.old, self.rng = manifest, manifest.with_suffix(".safetensors"), old, rng
        self.folder = manifest.parent
        self._sockets: list[socket.socket] = []

    def fields(self, **changes: Any) -> None:
        """Change fields of the manifest; Python's JSON writes NaN and Infinity as many do."""
        self.manifest.write_text(json.dumps({**json.loads(self.manifest.read_text()), **changes}))

    def literal(self, field: str, text: str) -> None:
        """Write a field's value as it stands."""
        content = json.loads(self.manifest.read_text())
        content[field] = "@@"
        self.manifest.write_text(json.dumps(content).replace('"@@"', text))

    def without(self, *fields: str) -> None:
        content = json.loads(self.manifest.read_text())
        self.manifest.write_text(json.dumps({key: value for key, value in content.items() if key not in fields}))

    def forge(self, content: bytes) -> None:
        """Other weights under a manifest that vouches for them."""
        self.blob.write_bytes(content)
        self.fields(sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    def tensors(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        self.forge(save(change(load(self.blob.read_bytes()))))

    def header(self, header: bytes, *, length: int | None = None, data: bytes = b"") -> None:
        """A safetensors file of this header."""
        self.forge(struct.pack("<Q", len(header) if length is None else length) + header + data)

    def entries(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the table at the head of the weights and leave the bytes."""
        content = self.blob.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = change(json.loads(content[8 : 8 + length]))
        self.header(json.dumps(header).encode(), data=content[8 + length :])

    def rename(self, name: str, **changes: Any) -> None:
        """Give manifest and weights another name, of which the manifest knows."""
        self.fields(blob=f"{name}.safetensors", **changes)
        self.blob = self.blob.rename(self.folder / f"{name}.safetensors")
        self.manifest = self.manifest.rename(self.folder / f"{name}.json")

    def either(self) -> Path:
        """The manifest or the weights, the one of the two taken away."""
        path = self.rng.choice([self.manifest, self.blob])
        path.unlink()
        return path

    def listen(self, path: Path) -> None:
        """A socket under this name."""
        server = socket.socket(socket.AF_UNIX)
        self._sockets.append(server)
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's whole path may have 107 characters only
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)

    def release(self) -> None:
        for server in self._sockets:
            server.close()


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ../../../../beside-executed executed",)


def _cut(d: Damaged, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: d.rng.randrange(len(content))])


def _flip(d: Damaged, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(d.rng.choice([1, 1, 8, 64])):
        content[d.rng.randrange(len(content))] ^= 1 << d.rng.randrange(8)
    path.write_bytes(bytes(content))


def _longer(d: Damaged, path: Path) -> None:
    with open(path, "ab") as file:
        file.write(d.rng.randbytes(d.rng.randint(1, 4000)))


def _chunk(d: Damaged, path: Path) -> None:
    """A part of the file is zeros, or comes twice, or is missing."""
    content = path.read_bytes()
    a, b = sorted(d.rng.sample(range(len(content)), 2))
    part = d.rng.choice([b"\0" * (b - a), content[a:b] * 2, b""])
    path.write_bytes(content[:a] + part + content[b:])


def _sparse(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


def _numbers(d: Damaged) -> Any:
    return d.rng.choice([10**30, 10**6 + 1, 2**63, 2**64, 10**400, -1, -8, -(10**30)])


def _other_kind(d: Damaged) -> Any:
    return d.rng.choice([True, False, 8.0, 8.5, "8", None, [8], {"step": 8}, float("nan"), float("inf"), 1e308])


def _first(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Change the first matrix of floating-point numbers."""

    def apply(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.ndim > 1)
        return {**weights, name: change(weights[name]).contiguous()}

    return apply


def _not_finite(d: Damaged) -> Callable[[Tensor], Tensor]:
    value = d.rng.choice([float("nan"), float("inf"), -float("inf")])

    def apply(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[d.rng.randrange(tensor.numel())] = value
        return tensor

    return apply


def _all_as(kind: torch.dtype) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: tensor.to(kind) for name, tensor in weights.items()}


def _entry(d: Damaged, **changes: Any) -> None:
    """Change what the head of the weights says of one tensor."""

    def change(header: dict[str, Any]) -> dict[str, Any]:
        name = d.rng.choice([name for name in header if name != "__metadata__"])
        return {**header, name: {**header[name], **changes}}

    d.entries(change)


def _numpy_file(d: Damaged) -> bytes:
    output = io.BytesIO()
    np.save(output, np.array([Bomb()], dtype=object), allow_pickle=True)
    return output.getvalue()


def _torch_file(d: Damaged) -> bytes:
    output = io.BytesIO()
    torch.save({"w": Bomb()}, output)
    return output.getvalue()


def _link(d: Damaged, to: str | Path) -> None:
    d.either().symlink_to(to)


def _loop(d: Damaged) -> None:
    path = d.either()
    other = path.with_name("other")
    path.symlink_to(other)
    other.symlink_to(path)


def _folder(d: Damaged) -> None:
    path = d.either()
    path.mkdir()
    if d.rng.random() < 0.5:
        (path / "inside.json").write_text("{}")


def _rubbish(d: Damaged) -> None:
    for number in range(d.rng.randint(1, 200)):
        ending = d.rng.choice([".json", ".safetensors", ".tmp", "", ".JSON", ".json.gz", ".part"])
        (d.folder / f"{d.rng.getrandbits(64):x}-{number}{ending}").write_bytes(d.rng.randbytes(d.rng.randint(0, 99)))


def _strange_names(d: Damaged) -> None:
    for name in (
        b"step-\xff\xfe.json",
        "step-ü-\u202e.json".encode(),
        b"step-\n.json",
        b".json",
        b" .json",
        b"a" * 250 + b".json",
    ):
        with open(os.path.join(os.fsencode(d.folder), name), "wb") as file:
            file.write(d.manifest.read_bytes() if d.rng.random() < 0.5 else b"{}")


DAMAGES: dict[str, Callable[[Damaged], None]] = {
    # The manifest as text
    "manifest cut": lambda d: _cut(d, d.manifest),
    "manifest with flipped bits": lambda d: _flip(d, d.manifest),
    "manifest longer": lambda d: _longer(d, d.manifest),
    "manifest with a part changed": lambda d: _chunk(d, d.manifest),
    "manifest empty": lambda d: d.manifest.write_bytes(b""),
    "manifest of random bytes": lambda d: d.manifest.write_bytes(d.rng.randbytes(d.rng.randint(1, 3000))),
    "manifest of another kind": lambda d: d.manifest.write_text(
        d.rng.choice(["[]", "null", "true", "7", '"x"', "NaN", "{}", "[{}]"])
    ),
    "manifest deeply nested": lambda d: d.manifest.write_text(
        d.rng.choice(["[", '{"a":']) * d.rng.choice([900, 100_000])
    ),
    "manifest in another encoding": lambda d: d.manifest.write_bytes(
        d.manifest.read_text().encode(d.rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"]))
    ),
    "manifest twice": lambda d: d.manifest.write_text(d.manifest.read_text() * 2),
    "manifest that is huge": lambda d: _sparse(d.manifest, 1 << 30),
    "manifest with a huge field": lambda d: d.fields(run="x" * 50_000_000),
    # Fields of the manifest
    "duplicate keys": lambda d: d.manifest.write_text(
        d.manifest.read_text()[:-1] + f', "step": {d.rng.choice([4, 9, -1, 10**9])}}}'
    ),
    "field missing": lambda d: d.without(
        d.rng.choice(
            ["group", "step", "incarnation", "blob", "sha256", "size", "model", "dtype", "run", "time", "checkpoint"]
        )
    ),
    "field unknown": lambda d: d.fields(**{d.rng.choice(["", "__class__", "Step", "é"]): 1}),
    "step absurd": lambda d: d.fields(step=_numbers(d)),
    "step of another type": lambda d: d.fields(step=_other_kind(d)),
    "step of 5,000 digits": lambda d: d.literal("step", "9" * 5000),
    "step other than the name's": lambda d: d.fields(step=d.rng.choice([0, 4, 7, 9, 12, 36])),
    "step absurd in name and manifest": lambda d: (lambda step: d.rename(f"step-{step:010d}-0123456789ab", step=step))(
        d.rng.choice([41, 10**9, 10**30])
    ),
    "incarnation absurd": lambda d: d.fields(incarnation=_numbers(d)),
    "incarnation of another type": lambda d: d.fields(incarnation=_other_kind(d)),
    "time absurd": lambda d: d.fields(time=d.rng.choice([_numbers(d), 1e308, -1e308, 0, 5e-324])),
    "time not finite": lambda d: d.fields(time=d.rng.choice([float("nan"), float("inf"), -float("inf")])),
    "time of another type": lambda d: d.fields(time=d.rng.choice([True, "now", None, [], {}])),
    "time of a huge exponent": lambda d: d.literal("time", d.rng.choice(["1e999999", "-1e400", "9" * 400 + ".5"])),
    "checkpoint absurd": lambda d: d.fields(checkpoint=_numbers(d)),
    "checkpoint of another type": lambda d: d.fields(checkpoint=_other_kind(d)),
    "size wrong": lambda d: d.fields(size=d.rng.choice([0, 1, -1, 10**18, 10**400, d.blob.stat().st_size + 1])),
    "size of another type": lambda d: d.fields(size=_other_kind(d)),
    "digest wrong": lambda d: d.fields(sha256=d.rng.choice(["", "0" * 64, "x", "é" * 64, "0" * 10**6])),
    "digest of another type": lambda d: d.fields(sha256=_other_kind(d)),
    "model of another fingerprint": lambda d: d.fields(model=d.rng.choice(["", "0" * 16, "é"])),
    "another run": lambda d: d.fields(run=d.rng.choice(["another", "", "fuzz ", "../fuzz"])),
    "another group": lambda d: d.fields(group=d.rng.choice([0, 2, -1, 10**30])),
    "group of another type": lambda d: d.fields(group=_other_kind(d)),
    "blob elsewhere": lambda d: d.fields(
        blob=d.rng.choice(["../../../beside", "/etc/passwd", "", ".", "..", f"../group-1/{d.blob.name}", "a\0b"])
    ),
    "blob of the older snapshot": lambda d: d.fields(blob=f"{d.old}.safetensors"),
    "types or notes wrong": lambda d: d.fields(dtype=d.rng.choice(["", "int8", "x" * 10**5, "\n\n"])),
    # The weights, under a manifest that knows nothing of it
    "weights cut": lambda d: _cut(d, d.blob),
    "weights with flipped bits": lambda d: _flip(d, d.blob),
    "weights longer": lambda d: _longer(d, d.blob),
    "weights with a part changed": lambda d: _chunk(d, d.blob),
    "weights empty": lambda d: d.blob.write_bytes(b""),
    "weights of random bytes": lambda d: d.blob.write_bytes(d.rng.randbytes(d.rng.randint(1, 9000))),
    "weights of the older snapshot": lambda d: d.blob.write_bytes((d.folder / f"{d.old}.safetensors").read_bytes()),
    "weights larger than said": lambda d: _sparse(d.blob, 1 << 30),
    # The weights, under a manifest that vouches for them
    "forged: no tensors": lambda d: d.forge(save({})),
    "forged: a tensor missing": lambda d: d.tensors(lambda w: dict(list(w.items())[1:])),
    "forged: a tensor too many": lambda d: d.tensors(lambda w: {**w, "more": torch.zeros(3)}),
    "forged: other names": lambda d: d.tensors(lambda w: {f"x.{name}": tensor for name, tensor in w.items()}),
    "forged: other shapes": lambda d: d.tensors(_first(lambda t: torch.cat([t, t]))),
    "forged: turned shapes": lambda d: d.tensors(_first(lambda t: t.reshape(-1))),
    "forged: a scalar": lambda d: d.tensors(_first(lambda t: t.flatten()[0])),
    "forged: an empty tensor": lambda d: d.tensors(_first(lambda t: t[:0])),
    "forged: other types": lambda d: d.tensors(
        _all_as(d.rng.choice([torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]))
    ),
    "forged: one of another type": lambda d: d.tensors(
        _first(lambda t: t.to(d.rng.choice([torch.float64, torch.float16, torch.int32, torch.bool])))
    ),
    "forged: head too long": lambda d: d.header(b"{}", length=d.rng.choice([3, 10**9, 2**31, 2**63, 2**64 - 1])),
    "forged: head no JSON": lambda d: d.header(d.rng.choice([b"", b"[", b"\xff" * 9, b"null", b"[]", b"{" * 50_000])),
    "forged: head of many": lambda d: d.header(
        json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}).encode()
    ),
    "forged: head with absurd shapes": lambda d: _entry(
        d, shape=d.rng.choice([[2**62, 4], [-1, 4], [10**30], [2**31, 2**31, 2**31], [1] * 5000, [0.5], "x"])
    ),
    "forged: head with absurd places": lambda d: _entry(
        d, data_offsets=d.rng.choice([[0, 2**62], [-4, 0], [8, 4], [0, 0], [0], "x", [0, 4], [2**64, 2**65]])
    ),
    "forged: head with unknown types": lambda d: _entry(d, dtype=d.rng.choice(["F128", "", "OBJECT", 7, None])),
    "forged: head with notes": lambda d: d.entries(
        lambda h: {"__metadata__": d.rng.choice([{"a": "b" * 10**6}, {"a": 1}, [], "x"]), **h}
    ),
    "forged: a pickle": lambda d: d.forge(pickle.dumps(Bomb())),
    "forged: a file of torch": lambda d: d.forge(_torch_file(d)),
    "forged: a file of numpy": lambda d: d.forge(_numpy_file(d)),
    "weights that are not finite": lambda d: d.tensors(_first(_not_finite(d))),
    # What lies in the folder
    "manifest without weights": lambda d: d.blob.unlink(),
    "weights without manifest": lambda d: d.manifest.unlink(),
    "a folder in its place": _folder,
    "a FIFO in its place": lambda d: os.mkfifo(d.either()),
    "a socket in its place": lambda d: d.listen(d.either()),
    "a link to nothing": lambda d: _link(d, "nowhere"),
    "a link that goes in circles": _loop,
    "a link to an endless device": lambda d: _link(d, "/dev/zero"),
    "a link to a folder": lambda d: _link(d, ".."),
    "a link to the older snapshot": lambda d: (lambda path: path.symlink_to(f"{d.old}{path.suffix}"))(d.either()),
    "no permission": lambda d: d.rng.choice([d.manifest, d.blob]).chmod(0),
    "another name": lambda d: d.rename(
        d.rng.choice(["x", "step-8", "step-0000000008", "step--000000008-a", "step-8-8-8-8", "ü", "a b"])
    ),
    "manifest under another name": lambda d: d.manifest.rename(
        d.folder / f"step-0000000009-{d.rng.getrandbits(40):x}.json"
    ),
    "rubbish beside it": _rubbish,
    "strange names beside it": _strange_names,
}
