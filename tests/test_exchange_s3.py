"""The exchange through S3: a real server of this machine, which goes away and comes back, or was never there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest
from conftest import compose, odist, weight_hashes
from s3fs import S3FileSystem
from test_exchange import equal, eventually, publish, weights

from odist.config.read import load
from odist.errors import LostWorkers
from odist.exchange.store import StoreExchange
from odist.launch import processes, worker
from odist.run.folder import Run

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("algorithm=codistill", "exchange=store", "model.hidden=[16]", "model.embedding_dim=4", "train.evaluate_every=0",
         "train.max_examples=3000", "task.synthetic.rows=3000", "task.synthetic.validation_rows=500", "train.batch=50",
         "algorithm.burn_in=100", "exchange.interval=200")  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Line:
    """What leads to a server; while it is cut, nobody listens at `port` and no connection lives."""

    def __init__(self, to: int) -> None:
        self.to, self.port = to, free_port()
        self.url = f"s3://bucket-{self.port}/some/folder"
        self._open: list[socket.socket] = []
        self._server: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def cut(self) -> None:
        assert self._server is not None
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open = []

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                ends = (server.accept()[0], socket.create_connection(("127.0.0.1", self.to)))
            except OSError:
                return
            self._open += ends
            for source, sink in (ends, ends[::-1]):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a running S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield port
    process.kill()
    process.wait()


@pytest.fixture
def line(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The way to the server, which the environment names, as it names the credentials; it has an empty bucket."""
    found = Line(server)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{found.port}", "AWS_ACCESS_KEY_ID": "somebody",
                        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # fsspec keeps one for each set of options, and the endpoint is none of them
    boto3.client("s3").create_bucket(Bucket=f"bucket-{found.port}")
    yield found
    with contextlib.suppress(OSError):
        found.cut()


@pytest.fixture
def create(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str, *overrides: str) -> Run:
        return Run.create(tmp_path / name, compose(*SMALL, *overrides), overrides=[], env={"run_id": name})

    return make


def test_an_empty_prefix_becomes_an_exchange_and_an_outage_is_survived(line: Line) -> None:
    sender = StoreExchange(0, peers=[1], url=line.url, run="this-run")
    receiver = StoreExchange(1, peers=[0], url=line.url, run="this-run", poll=0.05)
    publish(sender, 4)
    first = eventually(lambda: receiver.fetch(0))
    assert equal(first, 4)
    line.cut()
    sender.publish(8, weights(8))
    eventually(lambda: receiver.log().get("exchange_problems"))
    assert line.url in receiver.log()["exchange_reason"]
    assert sender.log().get("publish_failed") or eventually(lambda: sender.log().get("publish_failed"))
    line.mend()
    publish(sender, 12)
    assert equal(eventually(lambda: receiver.fetch(0, newer_than=first.age)), 12)
    for end in (sender, receiver):
        end.close()
    again = StoreExchange(0, peers=[1], url=line.url, run="this-run")
    assert again.incarnation == 1
    again.close()


def test_lock_step_over_s3_with_an_outage_has_the_bits_of_one_process(line: Line, create: Callable[..., Run]) -> None:
    whole = create("whole", "exchange=memory")
    worker.main(whole)
    run = create("run", "launch=local", f"exchange.url={line.url}", "train.log_every=50")

    def interrupt() -> None:
        eventually(lambda: (run.path / "metrics.jsonl").is_file() and len(run.metrics()) > 8, seconds=90)
        line.cut()
        time.sleep(3)
        line.mend()

    meanwhile = threading.Thread(target=interrupt)
    meanwhile.start()
    processes.train(run, load(run.path / "config.yaml"), stop=lambda: False)
    meanwhile.join()
    worker.combine(run)
    assert weight_hashes(run) == weight_hashes(whole)
    assert not (run.path / "exchange").exists()
    assert run.untaught_groups == []
    assert [group["teacher_swaps"] for group in run.results["groups"]] == [14, 14]


def test_freshest_over_s3_has_a_teacher(line: Line, create: Callable[..., Run]) -> None:
    run = create("run", f"exchange.url={line.url}", "exchange.timing=freshest", "exchange.poll=0.02",
                 "train.max_examples=12000", "task.synthetic.rows=12000")  # fmt: skip
    worker.main(run)
    assert run.untaught_groups == []


def test_a_server_that_was_never_there_ends_lock_step_with_its_url(line: Line, create: Callable[..., Run]) -> None:
    line.cut()
    run = create("run", "launch=local", f"exchange.url={line.url}", "exchange.timeout=3")
    began = time.monotonic()
    with pytest.raises(LostWorkers, match=rf"(?s){line.url}.*cannot be opened.*127.0.0.1:{line.port}") as caught:
        processes.train(run, load(run.path / "config.yaml"), stop=lambda: False)
    assert caught.value.exit_code == 4
    assert time.monotonic() - began < 60


def test_a_bucket_that_is_not_there_is_named_and_not_made(line: Line) -> None:
    with pytest.raises(LostWorkers, match="there is no bucket missing-bucket"):
        StoreExchange(0, peers=[1], url="s3://missing-bucket/x", run="this-run", history=4)
    assert "missing-bucket" not in [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]


def test_freshest_begins_without_its_server_and_says_so(
    line: Line, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line.cut()
    small = [word for word in SMALL if not word.startswith("exchange=")]
    command = [sys.executable, "-m", "odist.cli.main", "train", "scale=smoke", *small, "exchange=store", "launch=inline",
               "exchange.timing=freshest", f"exchange.url={line.url}", f"run.dir={tmp_path / 'run'}"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "no teacher yet" in done.stderr
    assert "groups 0, 1 never had a teacher" in done.stderr
    assert f"127.0.0.1:{line.port}" in done.stderr
    run = Run.open(tmp_path / "run")
    assert run.untaught_groups == [0, 1]
    assert [group["teacher_swaps"] for group in run.results["groups"]] == [0, 0]
    listed = subprocess.run([sys.executable, "-m", "odist.cli.main", "runs", str(tmp_path)], cwd=tmp_path, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)  # fmt: skip
    assert "finished, untaught" in listed.stdout


def test_a_missing_package_is_named_before_the_start(tmp_path: Path) -> None:
    code = "import sys; sys.modules['s3fs'] = None\nfrom odist.cli.main import main; sys.argv[1:1] = ['train']; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "scale=smoke",
        "algorithm=codistill",
        "launch=local",
        "exchange.url=s3://b/x",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'odist[s3]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_release_gate_reads_predictions_from_a_bucket(line: Line, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    frames = [pd.DataFrame({"row": np.arange(500), "prediction": draw.random(500)}) for _ in range(2)]
    urls = [f"{line.url}/{name}.parquet" for name in ("old", "new")]
    fs = S3FileSystem()
    for frame, url in zip(frames, urls, strict=True):
        with fs.open(url, "wb") as file:
            frame.to_parquet(file, row_group_size=100)
    done = odist("churn", *urls, "--max", "flips=0.01", "--json", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    flips = ((frames[0]["prediction"] > 0.5) != (frames[1]["prediction"] > 0.5)).mean()
    assert json.loads(done.stdout)["measures"]["flips"]["value"] == pytest.approx(flips)
    missing = odist("churn", urls[0], f"{line.url}/gone.parquet", "--max", "flips=0.01", cwd=tmp_path)
    assert missing.returncode == 2
    assert "gone.parquet" in missing.stderr
