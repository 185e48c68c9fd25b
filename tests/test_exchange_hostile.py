"""What may lie in a store beside good snapshots, and a store that never answers: both cost a staler teacher at most."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from conftest import compose
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load, save
from test_exchange import edited, equal, eventually, files, publish, replace, weights
from torch import Tensor

from odist.config.read import load as load_config
from odist.engine import problem, wiring
from odist.errors import Interrupted, LostWorkers
from odist.exchange import store
from odist.exchange.base import Snapshot, fingerprint
from odist.exchange.store import StoreExchange
from odist.mesh import Axis, Mesh
from odist.run.folder import Run
from odist.run.log import MetricsLog, make_progress
from odist.teachers import peers
from odist.teachers.peers import STALE_REFRESHES, Peers


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., StoreExchange]]:
    """Ends of one exchange in a folder, closed after the test."""
    ends: list[StoreExchange] = []

    def start(group: int, **options: Any) -> StoreExchange:
        url = options.pop("url", str(tmp_path / "exchange"))
        given = {"run": "this-run", "models": {0: fingerprint(weights(0))}, **options}
        ends.append(StoreExchange(group, peers=[1 - group], url=url, **given))
        return ends[-1]

    yield start
    for end in ends:
        end.close()


def newest(folder: Path, ending: str) -> Path:
    return sorted(folder.glob(f"*.{ending}"))[-1]


def in_place_of(ending: str, put: Callable[[Path], Any]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = newest(folder, ending)
        path.unlink()
        put(path)

    return plant


def listen(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's whole path may have 107 characters only
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def forge(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    """Other weights, under a manifest that vouches for them."""

    def plant(folder: Path) -> None:
        blob, record = newest(folder, "safetensors"), newest(folder, "json")
        content = save(change(load(blob.read_bytes())))
        blob.write_bytes(content)
        change_record = edited(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        record.write_bytes(change_record(record.read_bytes()))

    return plant


def say(**fields: Any) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        record = newest(folder, "json")
        record.write_bytes(edited(**fields)(record.read_bytes()))

    return plant


ENTRIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "folder as manifest": (in_place_of("json", Path.mkdir), "not a regular file"),
    "folder as weights": (in_place_of("safetensors", Path.mkdir), "not a regular file"),
    "pipe as manifest": (in_place_of("json", os.mkfifo), "not a regular file"),
    "pipe as weights": (in_place_of("safetensors", os.mkfifo), "not a regular file"),
    "socket as manifest": (in_place_of("json", listen), "cannot be read"),
    "link to nothing as manifest": (in_place_of("json", lambda path: path.symlink_to("nowhere")), "cannot be read"),
    "link to nothing as weights": (in_place_of("safetensors", lambda path: path.symlink_to("nowhere")), "missing"),
    "link in a circle": (in_place_of("safetensors", lambda path: path.symlink_to(path.name)), "cannot be read"),
    "link to an endless device": (in_place_of("json", lambda path: path.symlink_to("/dev/zero")), "not a regular file"),
    "no weights": (in_place_of("safetensors", lambda path: None), "missing"),
    "another name": (in_place_of("json", lambda path: (path.parent / "notes.txt").write_text("")), "not the name"),
    "huge manifest": (lambda folder: os.truncate(newest(folder, "json"), 1 << 30), "too large"),
    "other tensors": (forge(lambda w: {f"x.{name}": tensor for name, tensor in w.items()}), "another model"),
    "no tensors": (forge(lambda w: {}), "another model"),
    "other shapes": (forge(lambda w: {**w, "w": w["w"].reshape(-1)}), "another model"),
    "other types": (forge(lambda w: {**w, "w": w["w"].double()}), "another model"),
    "step other than its name's": (say(step=9), "not the one of its name"),
    "negative step": (say(step=-8), "not the one of its name"),
    "absurd incarnation": (say(incarnation=10**7), "incarnation"),
    "negative incarnation": (say(incarnation=-1), "incarnation"),
    "absurd checkpoint": (say(checkpoint=10**30), "checkpoint"),
    "time of 400 digits": (say(time=10**400), "time"),
    "time that is no number": (say(time=float("nan")), "time"),
    "endless time": (say(time=float("inf")), "time"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_bad_entry_is_counted_and_hides_no_good_one(
    make: Callable[..., StoreExchange], tmp_path: Path, kind: str
) -> None:
    plant, reason = ENTRIES[kind]
    publish(make(0), 4, 8)
    plant(tmp_path / "exchange" / "group-0")
    receiver = make(1, poll=0.01)
    first = eventually(lambda: receiver.fetch(0))
    assert equal(first, 4)
    assert receiver.fetch(0, step=8) is None
    assert receiver.log()["exchange_rejected"] == 1
    assert reason in receiver.log()["exchange_reason"]
    json.dumps(receiver.log(), allow_nan=False)
    publish(make(0), 12)
    assert equal(eventually(lambda: receiver.fetch(0, newer_than=first.age)), 12)
    assert receiver.log()["exchange_rejected"] == 1


def test_a_step_beyond_the_run_is_rejected(make: Callable[..., StoreExchange]) -> None:
    publish(make(0), 4, 4_000)
    receiver = make(1, poll=0.01, num_steps=100)
    assert equal(eventually(lambda: receiver.fetch(0)), 4)
    assert "step=4000 is not from 0 to 100" in receiver.log()["exchange_reason"]


def test_weights_larger_than_said_are_not_read(make: Callable[..., StoreExchange], tmp_path: Path) -> None:
    """Nor those whose manifest says that they are larger than the model."""
    publish(make(0), 4, 8, 12)
    folder = tmp_path / "exchange" / "group-0"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.truncate(sorted(folder.glob("*.safetensors"))[1], 1 << 30)
    os.truncate(newest(folder, "safetensors"), 1 << 30)
    say(size=1 << 30)(folder)
    receiver = make(1, poll=0.01, largest={0: 10_000})
    assert equal(eventually(lambda: receiver.fetch(0)), 4)
    assert receiver.log()["exchange_rejected"] == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_what_was_seen_half_copied_is_read_once_it_is_whole(
    make: Callable[..., StoreExchange], tmp_path: Path, ending: str
) -> None:
    publish(make(0), 4, 8)
    url, whole = str(tmp_path / "exchange"), []
    replace(url, 0, ending, lambda content: whole.append(content) or content[:20])
    receiver = make(1, poll=0.01, history=100)
    assert equal(eventually(lambda: receiver.fetch(0)), 4)
    assert receiver.fetch(0, step=8) is None
    assert receiver.log()["exchange_rejected"] == 1
    replace(url, 0, ending, lambda content: whole[0])
    assert equal(eventually(lambda: receiver.fetch(0, newer_than=(0, 4))), 8)
    assert equal(receiver.fetch(0, step=8), 8)
    assert receiver.log() == {}


def test_a_manifest_that_claims_to_be_newer_teaches_until_the_next_one(
    make: Callable[..., StoreExchange], tmp_path: Path
) -> None:
    sender = make(0)
    publish(sender, 4)
    say(incarnation=7)(tmp_path / "exchange" / "group-0")
    receiver = make(1, poll=0.01)  # not before: a manifest that it has read it does not read again
    assert eventually(lambda: receiver.fetch(0, newer_than=(0, 4))).age == (7, 4)
    publish(sender, 8, 12)
    assert eventually(lambda: (found := receiver.fetch(0)) and found.step == 12 and found).incarnation == 8


def test_a_group_sweeps_nothing_behind_a_link(make: Callable[..., StoreExchange], tmp_path: Path) -> None:
    end = make(0)
    publish(end, 4)
    end.close()
    here, elsewhere = tmp_path / "exchange" / "group-0", tmp_path / "elsewhere"
    os.rename(here, elsewhere)
    newest(elsewhere, "json").unlink()  # its weights are now an orphan
    here.symlink_to(elsewhere)
    make(0)
    assert len(list(elsewhere.iterdir())) == 1
    here.unlink()
    os.rename(elsewhere, here)
    make(0)
    assert list(here.iterdir()) == []


def test_an_orphan_that_is_a_folder_stops_no_group(make: Callable[..., StoreExchange], tmp_path: Path) -> None:
    end = make(0)
    publish(end, 4)
    end.close()
    in_place_of("json", lambda path: None)(tmp_path / "exchange" / "group-0")
    in_place_of("safetensors", Path.mkdir)(tmp_path / "exchange" / "group-0")
    publish(make(0), 8)
    assert equal(make(1, history=100).fetch(0, step=8), 8)


class Hanging(MemoryFileSystem):  # type: ignore[misc]
    """A store whose server stops answering."""

    protocol = "hanging"
    store: dict[str, Any] = {}  # noqa: RUF012 - as its parent
    pseudo_dirs = [""]  # noqa: RUF012
    answers = threading.Event()

    def _wait(self) -> None:
        assert self.answers.wait(20)

    def ls(self, *arguments: Any, **options: Any) -> Any:
        self._wait()
        return super().ls(*arguments, **options)

    def put_file(self, *arguments: Any, **options: Any) -> Any:
        self._wait()
        return super().put_file(*arguments, **options)


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    Hanging.store.clear()
    Hanging.answers.set()
    yield Hanging.answers
    Hanging.answers.set()


@pytest.fixture
def teacher(tmp_path: Path) -> Iterator[Callable[..., Peers]]:
    """Group 0's teacher of a real configuration, as `odist train` builds it; closed after the test."""
    all_parts: list[wiring.Parts] = []

    def build(*overrides: str, stop: Callable[[], bool] = lambda: False) -> Peers:
        given = compose("algorithm=codistill", "exchange=store", "algorithm.burn_in=0", "task.synthetic.rows=2000",
                        "train.prefetch=0", *overrides)  # fmt: skip
        run = Run.create(tmp_path / f"run-{len(all_parts)}", given, overrides=[], env={"run_id": "this-run"})
        config = load_config(run.path / "config.yaml")
        task = problem.build_task(config)
        log = MetricsLog(run, progress=make_progress(show=False, num_groups=2, num_steps=0))
        clock = problem.make_clock(config, task)
        parts = wiring.Parts(config, run, task, clock=clock, log=log, stop=stop)
        all_parts.append(parts)
        found = wiring.build_trainer(parts, Mesh(group=Axis(0, 2)), stop=lambda step: False).teacher
        assert isinstance(found, Peers)
        return found

    yield build
    for parts in all_parts:
        for end in parts.exchanges:
            end.close()
        parts.log.close()


def test_waiting_for_a_store_that_hangs_ends_with_the_time_limit(
    teacher: Callable[..., Peers], hanging: threading.Event
) -> None:
    waiting = teacher("exchange.url=hanging://store", "exchange.timeout=1.3")
    hanging.clear()
    began = time.monotonic()
    with pytest.raises(LostWorkers, match=r"step 4 within 1.3 s.*hanging|step 4 within 1.3 s.*not answered"):
        waiting.refresh(4)
    assert time.monotonic() - began < 5


def test_waiting_for_a_store_that_hangs_ends_with_a_signal(
    teacher: Callable[..., Peers], hanging: threading.Event
) -> None:
    signalled = threading.Event()
    waiting = teacher("exchange.url=hanging://store", stop=signalled.is_set)
    hanging.clear()
    threading.Timer(0.3, signalled.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="step 4"):
        waiting.refresh(4)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("timing", ["freshest", "lockstep"])
def test_a_store_that_hangs_holds_up_neither_a_step_nor_the_end(
    make: Callable[..., StoreExchange], hanging: threading.Event, monkeypatch: pytest.MonkeyPatch, timing: str
) -> None:
    monkeypatch.setattr(store, "SECONDS_TO_CLOSE", 0.2, raising=False)
    sender = make(0, url="hanging://store", history=100 if timing == "lockstep" else 0)
    hanging.clear()
    began = time.monotonic()
    for step in (4, 8, 12):
        sender.publish(step, weights(step))
    sender.close()
    assert time.monotonic() - began < 5


def test_the_message_of_a_wait_says_what_was_rejected(teacher: Callable[..., Peers], tmp_path: Path) -> None:
    waiting = teacher(f"exchange.url={tmp_path / 'exchange'}", "exchange.timeout=2")
    peer = StoreExchange(1, peers=[0], url=str(tmp_path / "exchange"), run="this-run", history=100)
    peer.publish(4, {"w": torch.zeros(3)})
    peer.close()
    with pytest.raises(LostWorkers, match=r"group 1 .* step 4 .*group-1/step-0000000004-\w+.json: of another model"):
        waiting.refresh(4)
    row = waiting.log()
    assert row["exchange_rejections"] == {"other_model": 1}
    assert 2 <= row["waited_seconds"] < 10
    assert waiting.log()["waited_seconds"] == 0


def test_freshest_names_a_peer_that_sends_nothing_new(
    teacher: Callable[..., Peers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "STALE_SECONDS", 0.0)
    url = str(tmp_path / "exchange")
    listening = teacher(f"exchange.url={url}", "exchange.timing=freshest", "exchange.poll=0.01")
    peer = StoreExchange(1, peers=[0], url=url, run="this-run")
    for published in (4, 8):
        peer.publish(published, listening.student.state_dict())
        eventually(lambda: listening.exchange.fetch(1, newer_than=(0, published - 1)))  # noqa: B023
        listening.refresh(4)
        row = listening.log()
        assert [swap[3] for swap in row["swaps"]] == [published]
        assert "teacher_stale" not in row
        for _ in range(STALE_REFRESHES):
            listening.refresh(4)
        row = listening.log()
        assert (row["teacher_stale"], row.get("swaps")) == ([1], None)
    peer.close()


def test_a_store_that_takes_nothing_ends_lock_step_with_the_state_saved(
    teacher: Callable[..., Peers], tmp_path: Path
) -> None:
    """Exit code 4, which starts no group again in vain; the checkpoint holds what peers cannot read yet."""
    url = tmp_path / "exchange"
    full = teacher(f"exchange.url={url}", "exchange.timeout=2", "exchange.lag=1")
    os.rename(url, tmp_path / "away")
    url.write_text("not a folder any more")
    full.publish(4, lambda: full.student)
    with pytest.raises(LostWorkers, match=rf"group 0 cannot be written for its peers.*{url}") as caught:
        full.refresh(full.num_steps)
    assert caught.value.exit_code == 4
    full.refresh(6)
    state = full.state_dict()
    assert [saved["step"] for saved in state["published"]] == [4]
    url.unlink()
    again = teacher(f"exchange.url={url}", "exchange.timeout=20", "exchange.lag=1")
    again.load_state_dict({name: value for name, value in state.items() if name not in ("heard", "num_swaps")})
    again.refresh(again.num_steps)
    peer = StoreExchange(1, peers=[0], url=str(url), run="this-run", history=8)
    found = peer.fetch(0, step=4)
    peer.close()
    assert found is not None
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in full.student.state_dict().items())


def test_a_run_that_was_taught_says_so(teacher: Callable[..., Peers], tmp_path: Path) -> None:
    listening = teacher(f"exchange.url={tmp_path / 'exchange'}", "exchange.timing=freshest", "exchange.poll=0.01")
    assert listening.summary() == {"teacher_swaps": 0, "taught": False}
    (tmp_path / "exchange" / "group-1" / "step-0000000000-x.json").mkdir(parents=True)
    eventually(lambda: "step-0000000000-x.json: not a regular file" in listening.summary().get("exchange_reason", ""))
    row = MetricsLog(Run(tmp_path / "run-0"), progress=make_progress(show=False, num_groups=2, num_steps=0))
    row.write("train", group=0, step=4, swaps=[(4, 1, float("nan"))], **listening.log())
    row.close()
    for line in (tmp_path / "run-0" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_lock_step_takes_a_diverged_peer_as_it_was_agreed(make: Callable[..., StoreExchange]) -> None:
    broken = weights(4)
    broken["w"][0, 0] = float("inf")
    sender = make(0, history=100)
    sender.publish(4, broken)
    found = eventually(lambda: make(1, history=100).fetch(0, step=4))
    assert isinstance(found, Snapshot)
    assert not found.weights["w"].isfinite().all()


def test_names_of_all_bytes_and_foreign_words_stay_on_one_line(
    make: Callable[..., StoreExchange], tmp_path: Path
) -> None:
    publish(make(0), 4)
    folder = tmp_path / "exchange" / "group-0"
    for name in (b"step-\xff\xfe.json", b"a\nb.json", b"x" * 250):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(b"{}")
    receiver = make(1, poll=0.01)
    assert equal(eventually(lambda: receiver.fetch(0)), 4)
    assert receiver.log()["exchange_rejected"] == 3
    for path in folder.glob("step-0000000004*.json"):
        path.write_bytes(edited(run="x\n" * 10_000)(path.read_bytes()))
    fresh = make(1, poll=0.01)
    reason = eventually(lambda: fresh.log().get("exchange_reason"))
    assert "\n" not in reason
    assert len(reason) < 2_000
    reason.encode()
    assert files(str(tmp_path / "exchange"), 0)
