"""What a group notices of a peer that is dead, hangs, or cannot be reached; and a run whose processes are killed at random.

Two groups in processes of their own hand each other weights through a store, as `exchange.timing=freshest`. In one round
after the other the step of group 0 is timed beside a sound peer and beside each fault. `odist.bench.kills` counts what
killing costs under lock-step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from odist.bench.criteo import make_config, write_store
from odist.bench.kills import survive
from odist.bench.process import Process
from odist.bench.replica import start_replica, write_config
from odist.bench.rounds import Row
from odist.config.identity import to_dict
from odist.config.read import load
from odist.config.schema import Config
from odist.errors import OdistError

BATCH = 100
GOAL = 1.05
SECONDS_TO_SETTLE = 0.3  # after a fault begins, so that the store has been asked since
SECONDS_FOR_SERVER = 60.0


@dataclass(frozen=True)
class Size:
    """The size of the measurement; tests take smaller ones.

    steps: of one turn; interval: steps between two reloads of the teacher
    kill_steps: steps of the killed run for each kill
    """

    rows: int = 100_000
    buckets: int = 26_000
    hidden: tuple[int, ...] = (256, 128, 64)
    steps: int = 160
    interval: int = 20
    kill_steps: int = 40
    s3: bool = True


def measure(*, rounds: int, say: Callable[[str], None], size: Size | None = None, kills: int = 20) -> list[Row]:
    """Measure every row of the table.

    kills: how many processes of the lock-step run are killed
    """
    size = size or Size()
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as name:
        folder = Path(name)
        write_store(folder / "store", rows=size.rows, buckets=size.buckets)
        say("faults: a folder as store; the peer dead, stopped, or the folder gone")
        rows = _beside_faults(folder, folder / "exchange", size, rounds=rounds)
        if size.s3 and all(importlib.util.find_spec(module) for module in ("moto", "s3fs")):
            say("faults: an S3 server as store, which stops answering")
            rows += _beside_silent_server(folder, size, rounds=rounds)
        else:
            say(
                "faults: the S3 server that stops answering is skipped: it needs the packages moto[server] and odist[s3]"
            )
        say(f"faults: {kills} random kills")
        return [*rows, survive(folder / "killed", kills=kills, steps=size.kill_steps, say=say)]


class Pair:
    """Group 0, which is timed, and group 1 beside it, which may be absent, stopped, or sound.

    url: root of their store; environment: variables of both processes
    """

    def __init__(self, folder: Path, config: Config, *, environment: Mapping[str, str]) -> None:
        folder.mkdir()
        write_config(folder, config)
        self._folder, self._environment = folder, environment
        self._steps = 0  # of either
        self._peer: Process | None = None
        self._timed = start_replica(folder, 0, environment=environment)

    def restore(self) -> None:
        """Start the peer unless it lives."""
        if self._peer is None:
            self._peer = start_replica(self._folder, 1, start=self._steps, environment=self._environment)
            self._peer.wait()

    def kill(self) -> None:
        """Kill the peer."""
        assert self._peer is not None
        self._peer.kill()
        self._peer = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The peer hangs in the middle of its steps."""
        assert self._peer is not None
        self._peer.begin(self._turn)
        time.sleep(0.05)
        self._peer.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._peer.process.send_signal(signal.SIGCONT)
            self._peer.wait("done")

    def step(self, steps: int, *, with_peer: bool) -> float:
        """Median seconds of a step of group 0 over so many; with_peer: whether group 1 makes as many at the same time."""
        if with_peer:
            assert self._peer is not None
            self._peer.begin(steps)
        self._timed.begin(steps)
        [seconds] = self._timed.wait("done")
        if with_peer:
            assert self._peer is not None
            self._peer.wait("done")
        self._steps += steps
        return seconds

    def open(self, turn: int) -> None:
        """Wait until both are ready; turn: steps that the peer makes before it is stopped."""
        self._turn = turn
        self._timed.wait()
        self.restore()

    def close(self) -> None:
        """End both."""
        for replica in (self._timed, self._peer):
            if replica is not None:
                replica.close()


def _config(folder: Path, url: str, size: Size) -> Config:
    config = make_config(
        folder / "store",
        batch=BATCH,
        num_groups=2,
        peers=True,
        interval=size.interval,
        log=size.interval,
        hidden=size.hidden,
    )
    content = to_dict(config)
    content["exchange"] |= {"name": "store", "timing": "freshest", "url": url, "poll": 0.05}
    return load(content)


@contextlib.contextmanager
def _pair(folder: Path, name: str, url: str, size: Size, *, environment: Mapping[str, str]) -> Iterator[Pair]:
    pair = Pair(folder / name, _config(folder, url, size), environment=environment)
    try:
        pair.open(size.steps)
        pair.step(size.steps, with_peer=True)  # warm, and each has heard the other
        yield pair
    finally:
        pair.close()


Times = dict[str, list[float]]


def _turns(arms: Mapping[str, Callable[[], float]], *, rounds: int) -> Times:
    """Median step of every arm, one number a round; each round begins with another arm."""
    names = list(arms)
    times: Times = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            times[name].append(arms[name]())
    return times


def _row(times: Times, name: str, text: str) -> Row:
    pairs = list(zip(times[name], times["sound"], strict=True))
    return Row(f"peer_{name}", f"{text} / beside a sound peer", [a / b for a, b in pairs], GOAL)


def _in_place(path: Path, put: Callable[[], object]) -> None:
    """Call `put`, which makes `path`, again while a folder that a publishing process has made anew is in its way."""
    while True:
        try:
            put()
            return
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(path, ignore_errors=True)


def _beside_faults(folder: Path, store: Path, size: Size, *, rounds: int) -> list[Row]:
    with _pair(folder, "folder", str(store), size, environment={}) as pair:

        def sound() -> float:
            pair.restore()
            return pair.step(size.steps, with_peer=True)

        def dead() -> float:
            pair.restore()
            pair.kill()
            time.sleep(SECONDS_TO_SETTLE)
            return pair.step(size.steps, with_peer=False)

        def hung() -> float:
            pair.restore()
            with pair.stopped():
                time.sleep(SECONDS_TO_SETTLE)
                return pair.step(size.steps, with_peer=False)

        def gone() -> float:
            pair.restore()
            aside = store.with_name("aside")
            store.rename(aside)
            _in_place(store, lambda: store.write_text("not a folder"))
            try:
                time.sleep(SECONDS_TO_SETTLE)
                return pair.step(size.steps, with_peer=True)
            finally:
                store.unlink()
                _in_place(store, lambda: aside.rename(store))

        times = _turns({"sound": sound, "dead": dead, "hung": hung, "gone": gone}, rounds=rounds)
    return [
        _row(times, "dead", "median step while the peer is dead (SIGKILL)"),
        _row(times, "hung", "while it hangs (SIGSTOP)"),
        _row(times, "gone", "while the store's folder is gone and a file lies there"),
    ]


def _beside_silent_server(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    with _server(folder) as (process, environment):
        url = "s3://bucket/exchange"
        with _pair(folder, "s3", url, size, environment=environment) as pair:

            def sound() -> float:
                return pair.step(size.steps, with_peer=True)

            def silent() -> float:
                process.send_signal(signal.SIGSTOP)
                try:
                    time.sleep(SECONDS_TO_SETTLE)
                    return pair.step(size.steps, with_peer=True)
                finally:
                    process.send_signal(signal.SIGCONT)
                    time.sleep(SECONDS_TO_SETTLE)

            times = _turns({"sound": sound, "silent": silent}, rounds=rounds)
            return [_row(times, "silent", "while the S3 server of the store does not answer (SIGSTOP)")]


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """An S3 server of this machine with an empty bucket, and the variables that lead there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + SECONDS_FOR_SERVER
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise OdistError(f"the S3 server of the benchmark did not start: {(folder / 'server.log').read_text()}")
            time.sleep(0.1)
        make = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"
        subprocess.run([sys.executable, "-c", make], env={**os.environ, **environment}, check=True)
        yield process, environment
    finally:
        process.kill()
        process.wait()
