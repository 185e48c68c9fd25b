"""Weights between groups through a store: what is published arrives whole or not at all, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from conftest import compose
from torch import Tensor

from odist.errors import UserError
from odist.exchange.base import Snapshot, fingerprint
from odist.exchange.memory import MemoryExchange
from odist.exchange.publisher import QUIET_PUBLICATIONS
from odist.exchange.store import StoreExchange
from odist.launch.launch import prepare_config
from odist.launch.remarks import remarks

ROOT = Path(__file__).resolve().parent.parent
RUN = "this-run"


def weights(value: float) -> dict[str, Tensor]:
    """A model with a buffer and two types; `value` tells which."""
    return {
        "w": torch.full((3, 2), float(value)),
        "steps": torch.tensor([int(value)]),
        "half": torch.ones(2).bfloat16(),
    }


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The root of a store: a folder of this machine, and a file system that is none."""
    if request.param == "folder":
        yield str(tmp_path / "exchange")
        return
    root = f"memory://{uuid.uuid4().hex}"
    yield root
    fs, path = fsspec.core.url_to_fs(root)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@pytest.fixture
def make() -> Iterator[Callable[..., StoreExchange]]:
    """Ends of an exchange, closed after the test."""
    ends: list[StoreExchange] = []

    def start(group: int, url: str, **options: Any) -> StoreExchange:
        ends.append(StoreExchange(group, peers=[1 - group], url=url, **{"run": RUN, **options}))
        return ends[-1]

    yield start
    for end in ends:
        end.close()


def publish(end: StoreExchange, *steps: int) -> None:
    """Publish step by step, each written before the next; a snapshot's value is its step."""
    for step in steps:
        end.publish(step, weights(step))
        assert end._pending is not None
        end._pending.result()


def eventually(question: Callable[[], Any], *, seconds: float = 20.0) -> Any:
    """The first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return answer


def files(url: str, group: int) -> list[str]:
    fs, root = fsspec.core.url_to_fs(url)
    return sorted(path.rsplit("/", 1)[-1] for path in fs.ls(f"{root}/group-{group}", detail=False))


def replace(url: str, group: int, ending: str, change: Callable[[bytes], bytes], *, index: int = -1) -> None:
    """Damage the newest (or another) file of a group."""
    fs, root = fsspec.core.url_to_fs(url)
    name = [name for name in files(url, group) if name.endswith(ending)][index]
    path = f"{root}/group-{group}/{name}"
    fs.pipe_file(path, change(fs.cat_file(path)))


def remove(url: str, group: int, ending: str) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    for name in files(url, group):
        if name.endswith(ending):
            fs.rm_file(f"{root}/group-{group}/{name}")


def edited(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **fields}).encode()


def equal(snapshot: Snapshot | None, step: int) -> bool:
    assert snapshot is not None
    assert snapshot.step == step
    expected = weights(step)
    assert snapshot.weights.keys() == expected.keys()
    return all(torch.equal(snapshot.weights[name], tensor) for name, tensor in expected.items())


def test_a_snapshot_arrives_as_it_was_when_published(url: str, make: Callable[..., StoreExchange]) -> None:
    sender, receiver = make(0, url, history=100), make(1, url, history=100)
    assert receiver.fetch(0, step=4) is None
    changing = weights(4)
    sender.publish(4, changing)
    changing["w"].zero_()  # training goes on at once
    sender.publish(8, weights(8))
    sender.flush()
    assert equal(receiver.fetch(0, step=4), 4)
    assert equal(receiver.fetch(0, step=8), 8)
    assert receiver.fetch(0, step=6) is None
    assert receiver.fetch(1, step=4) is None
    assert receiver.log() == {}


def test_the_freshest_is_found_in_the_background(url: str, make: Callable[..., StoreExchange]) -> None:
    sender, receiver = make(0, url), make(1, url, poll=0.01)
    assert receiver.fetch(0) is None
    publish(sender, 4)
    first = eventually(lambda: receiver.fetch(0))
    assert equal(first, 4)
    assert receiver.fetch(0, newer_than=first.age) is None
    publish(sender, 8)
    assert equal(eventually(lambda: receiver.fetch(0, newer_than=first.age)), 8)


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_both_exchanges_keep_the_same_promises(kind: str, tmp_path: Path, make: Callable[..., StoreExchange]) -> None:
    published: dict[int, dict[int, Snapshot]] = {}
    if kind == "store":
        ends: list[Any] = [make(group, str(tmp_path), history=100) for group in range(2)]
    else:
        ends = [MemoryExchange(group, published=published, keep=2) for group in range(2)]
    for step in (4, 8):
        ends[0].publish(step, weights(step))
    ends[0].flush()
    assert equal(ends[1].fetch(0, step=4), 4)
    assert equal(ends[1].fetch(0, step=8), 8)
    assert ends[1].fetch(0, step=12) is None
    assert ends[1].log() == {}


def test_without_manifest_there_is_no_snapshot(url: str, make: Callable[..., StoreExchange]) -> None:
    publish(make(0, url), 4, 8)
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{root}/group-0/{[n for n in files(url, 0) if n.endswith('.json')][-1]}")
    receiver = make(1, url, poll=0.01)
    assert equal(eventually(lambda: receiver.fetch(0)), 4)
    assert receiver.fetch(0, step=8) is None
    assert receiver.log() == {}


def test_leftovers_of_a_killed_writer_are_swept_by_its_own_group_and_run(
    url: str, make: Callable[..., StoreExchange]
) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    for group in (0, 1):
        end = make(group, url)
        publish(end, 4, 8)
        end.close()
        names = files(url, group)
        fs.rm_file(
            f"{root}/group-{group}/{[n for n in names if n.endswith('.json')][-1]}"
        )  # killed before the manifest
        fs.pipe_file(f"{root}/group-{group}/.{names[-1]}.tmp", b"half")  # killed while writing
    stranger = make(0, url, run="another-run")
    assert any(name.endswith(".tmp") for name in files(url, 0))  # another run may still be writing it
    publish(stranger, 99)
    make(0, url)
    mine = [name for name in files(url, 0) if "step-0000000099" not in name]
    assert [name[:15] for name in mine] == ["step-0000000004"] * 2
    assert len(files(url, 0)) == 4
    assert len(files(url, 1)) == 4  # the manifest of 4, two blobs, the temporary file


def test_a_process_that_was_started_again_elsewhere_teaches_no_more(
    url: str, make: Callable[..., StoreExchange]
) -> None:
    """It was thought dead and wakes up; only when the later one is gone do its snapshots count again."""
    zombie = make(0, url)
    publish(zombie, 4, 8)
    again, receiver = make(0, url), make(1, url, poll=0.01)
    publish(again, 4)
    eventually(lambda: (found := receiver.fetch(0)) and found.age == (1, 4))
    publish(zombie, 400)
    assert zombie.log()["publish_superseded"] == 1
    publish(again, 8)
    eventually(lambda: (found := receiver.fetch(0)) and found.age == (1, 8))
    assert "publish_superseded" not in again.log()
    publish(zombie, *range(404, 404 + QUIET_PUBLICATIONS + 2))
    assert "publish_superseded" not in zombie.log()
    assert eventually(lambda: receiver.fetch(0, newer_than=(1, 400))).incarnation == 2


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "torn manifest": (".json", lambda content: content[: len(content) // 2], "not a manifest"),
    "garbage manifest": (".json", lambda content: b"\xff\x00 no text", "not a manifest"),
    "manifest of another kind": (".json", lambda content: b"[1, 2]", "no JSON object"),
    "missing field": (".json", lambda content: b'{"step": 8}', "missing or unknown fields"),
    "wrong type": (".json", edited(step="8"), "wrong type"),
    "another's weights": (".json", edited(blob="../group-1/x.safetensors"), "not its own"),
    "foreign run": (".json", edited(run="another-run"), "of run another-run"),
    "foreign group": (".json", edited(group=1), "group 1"),
    "another model": (".json", edited(model="0" * 16), "of another model"),
    "truncated weights": (".safetensors", lambda content: content[:-3], "not those of the manifest"),
    "flipped bit": (".safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "not those of the manifest"),
}  # fmt: skip

KINDS = {"foreign run": "other_run", "foreign group": "other_run", "another model": "other_model"}
KINDS |= {"truncated weights": "damaged", "flipped bit": "damaged"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_verify_is_rejected_once_and_counted(
    url: str, make: Callable[..., StoreExchange], damage: str
) -> None:
    ending, change, reason = DAMAGES[damage]
    publish(make(0, url), 4, 8)
    replace(url, 0, ending, change)
    receiver = make(1, url, poll=0.01, models={0: fingerprint(weights(0))})
    assert equal(eventually(lambda: receiver.fetch(0)), 4)  # the next older valid one
    assert receiver.fetch(0, step=8) is None
    time.sleep(0.05)  # some more looks
    said = receiver.log()
    assert said["exchange_rejected"] == 1
    assert said["exchange_rejections"] == {KINDS.get(damage, "not_a_manifest"): 1}
    assert reason in said["exchange_reason"]
    publish(make(0, url), 12)
    assert equal(eventually(lambda: receiver.fetch(0, newer_than=(0, 8))), 12)
    assert receiver.log()["exchange_rejected"] == 1


def test_no_weights_in_the_form_of_weights(url: str, make: Callable[..., StoreExchange]) -> None:
    """Even a manifest that vouches for it does not make a file of something else into weights."""
    import hashlib

    publish(make(0, url), 4, 8)
    replace(url, 0, ".safetensors", lambda content: b"no weights")
    replace(url, 0, ".json", edited(size=10, sha256=hashlib.sha256(b"no weights").hexdigest()))
    receiver = make(1, url, poll=0.01)
    assert equal(eventually(lambda: receiver.fetch(0)), 4)
    assert "cannot be read" in receiver.log()["exchange_reason"]


def test_a_diverged_peers_weights_are_never_the_freshest(url: str, make: Callable[..., StoreExchange]) -> None:
    sender, receiver = make(0, url), make(1, url, poll=0.01)
    publish(sender, 4)
    broken = weights(8)
    broken["w"][1, 1] = float("nan")
    sender.publish(8, broken)
    eventually(lambda: receiver.log().get("exchange_rejected"))
    assert "not finite" in receiver.log()["exchange_reason"]
    assert equal(receiver.fetch(0), 4)


def test_freshest_keeps_the_newest_few(url: str, make: Callable[..., StoreExchange]) -> None:
    sender = make(0, url, keep=2)
    publish(sender, 4, 8, 12, 16)
    assert [name[:15] for name in files(url, 0)] == ["step-0000000012"] * 2 + ["step-0000000016"] * 2


def test_lock_step_keeps_what_a_restarted_group_asks_for(url: str, make: Callable[..., StoreExchange]) -> None:
    """The oldest last checkpoint of all groups, less the history, decides; without any nothing is deleted."""
    saved = {0: -1, 1: -1}
    ends = [make(group, url, history=8, last_checkpoint=lambda g=group: saved[g]) for group in range(2)]

    def kept(group: int) -> list[int]:
        return sorted(int(name[5:15]) for name in files(url, group) if name.endswith(".json"))

    for step in range(4, 44, 4):
        for end in ends:
            publish(end, step)
    assert kept(0) == kept(1) == list(range(4, 44, 4))
    saved[0] = 40  # group 1 has saved nothing: group 0 keeps all it may ask for; so does 1 for its own return
    for end in ends:
        publish(end, 44)
    assert kept(0) == kept(1) == list(range(4, 48, 4))
    saved[1] = 28
    for end in (ends[1], ends[0]):
        publish(end, 48)
    assert kept(0) == kept(1) == list(range(28 - 8, 52, 4))


def test_a_restarted_group_is_newer_whatever_its_step(url: str, make: Callable[..., StoreExchange]) -> None:
    receiver = make(1, url, poll=0.01)
    first = make(0, url)
    publish(first, 4, 8)
    before = eventually(lambda: (found := receiver.fetch(0)) and found.step == 8 and found)
    again = make(0, url)
    assert (first.incarnation, again.incarnation) == (0, 1)
    publish(again, 4)  # it went back to an older checkpoint
    after = eventually(lambda: receiver.fetch(0, newer_than=before.age))
    assert (after.incarnation, after.step) == (1, 4)
    assert make(0, url).incarnation == 2


def test_a_slow_store_never_holds_up_freshest(tmp_path: Path, make: Callable[..., StoreExchange]) -> None:
    """Of what a store that hangs has not taken yet only the newest is written."""
    sender = make(0, str(tmp_path / "exchange"))
    os.mkfifo(tmp_path / "gate")
    hanging = sender._writer.submit((tmp_path / "gate").read_bytes)  # until somebody writes into it
    for step in (4, 8, 12):
        sender.publish(step, weights(step))
    assert not hanging.done()
    (tmp_path / "gate").write_bytes(b"go on")
    sender.close()
    assert [name[:15] for name in files(str(tmp_path / "exchange"), 0)] == ["step-0000000012"] * 2


FULL_DISK = """
import json, os, resource, sys, time
import torch
from odist.exchange.store import SECONDS_TO_RETRY, StoreExchange
url, history = sys.argv[1], int(sys.argv[2])
end = StoreExchange(0, peers=[1], url=url, run="this-run", history=history)
def publish(step, size):
    end.publish(step, {"w": torch.full((size,), float(step))})
    end._pending.result()
publish(4, 10)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
publish(8, 1_000_000)  # the disk takes 100 kB of 4 MB
time.sleep(SECONDS_TO_RETRY)
readable = end.flush()
print(json.dumps({"log": end.log(), "readable": readable, "names": sorted(os.listdir(url + "/group-0"))}))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
publish(12, 10)
assert end.flush()
end.close()
"""


def test_a_disk_that_is_full_is_counted_and_never_raised(tmp_path: Path, make: Callable[..., StoreExchange]) -> None:
    """Under lock-step what could not be written is kept and written later."""
    for history, later in ((0, {4, 12}), (100, {4, 8, 12})):
        url = tmp_path / str(history)
        command = [sys.executable, "-c", FULL_DISK, str(url), str(history)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["log"]["publish_failed"] == (2 if history else 1)  # flush tried once more
        assert {name[:15] for name in said["names"]} == {"step-0000000004"}  # no half of a file is left
        assert said["readable"] == (history == 0)
        reader = make(1, str(url), history=history)
        assert {step for step in (4, 8, 12) if reader.fetch(0, step=step) is not None} == later


def test_a_store_that_goes_away_and_comes_back(tmp_path: Path, make: Callable[..., StoreExchange]) -> None:
    url = tmp_path / "exchange"
    sender, receiver = make(0, str(url)), make(1, str(url), poll=0.01)
    publish(sender, 4)
    first = eventually(lambda: receiver.fetch(0))
    os.rename(url, tmp_path / "away")
    url.write_text("not a folder any more")
    publish(sender, 8)
    assert sender.publish_failed == 1
    assert sender.log()["publish_failed"] == 1
    eventually(lambda: receiver.log().get("exchange_problems"))
    assert receiver.fetch(0, step=4) is None
    url.unlink()
    os.rename(tmp_path / "away", url)
    publish(sender, 12)
    assert equal(eventually(lambda: receiver.fetch(0, newer_than=first.age)), 12)


def test_lock_step_knows_what_its_peers_cannot_read(tmp_path: Path, make: Callable[..., StoreExchange]) -> None:
    url = tmp_path / "exchange"
    sender = make(0, str(url), history=8)
    os.rename(url, tmp_path / "away")
    url.write_text("not a folder any more")
    sender.publish(4, weights(4))
    assert not sender.flush()
    assert str(url) in sender.log()["exchange_reason"]
    url.unlink()
    os.rename(tmp_path / "away", url)
    assert eventually(sender.flush)
    assert equal(make(1, str(url), history=8).fetch(0, step=4), 4)


WRITER = """
import sys, torch
from odist.exchange.store import StoreExchange
url, first, last, keep = sys.argv[1], *map(int, sys.argv[2:])
end = StoreExchange(0, peers=[1], url=url, run="this-run", keep=keep)
for step in range(first, last):
    end.publish(step, {"w": torch.full((50_000,), float(step)), "b": torch.full((7,), float(step))})
    end._pending.result()
end.close()
"""


def writer(url: Path, first: int, last: int, *, keep: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(url), str(first), str(last), str(keep)]
    return subprocess.Popen(command, cwd=ROOT)


def test_a_reader_under_load_never_sees_a_torn_snapshot(tmp_path: Path, make: Callable[..., StoreExchange]) -> None:
    """200 snapshots of a writer that deletes all but the newest, killed on the way and started again."""
    url = tmp_path / "exchange"
    receiver = make(1, str(url), poll=0.001)
    seen: list[tuple[int, int]] = []

    def look() -> None:
        found = receiver.fetch(0, newer_than=seen[-1] if seen else None)
        if found is not None:
            assert torch.equal(found.weights["w"], torch.full((50_000,), float(found.step)))
            assert torch.equal(found.weights["b"], torch.full((7,), float(found.step)))
            assert not seen or found.age > seen[-1]
            seen.append(found.age)

    first = writer(url, 0, 200, keep=1)
    while not seen or seen[-1] < (0, 60):
        assert first.poll() is None
        look()
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = writer(url, 50, 190, keep=1)
    while second.poll() is None:
        look()
        time.sleep(0.0005)
    assert second.returncode == 0
    eventually(lambda: look() or seen[-1] == (1, 189))
    assert len(seen) > 20
    assert receiver.log() == {}
    assert len(files(str(url), 0)) == 2  # what the killed writer left is gone too


def test_a_folder_is_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = compose("algorithm=codistill", "launch=local", "exchange.url=some/folder")
    assert prepare_config(given).exchange.url == str(tmp_path / "some" / "folder")
    given = compose("algorithm=codistill", "launch=local", "exchange.url=memory://some/folder")
    assert prepare_config(given).exchange.url == "memory://some/folder"


def test_a_url_that_no_file_system_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"exchange.url=sss://bucket: sss is no kind of store"):
        prepare_config(compose("algorithm=codistill", "launch=local", "exchange.url=sss://bucket"))
    unused = prepare_config(compose("algorithm=codistill", "exchange.url=/some/folder"))
    assert any("exchange.url=/some/folder is not used" in remark for remark in remarks(unused))
