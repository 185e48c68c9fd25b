"""`odist bench`: fair arms, ratios by hand, files. How fast anything is, is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from odist.bench import suite as bench
from odist.bench.rounds import Arm, Ratio, Row, Timing, compare, interleave
from odist.errors import OdistError, UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from odist.bench.criteo import write_store

    path = tmp_path_factory.mktemp("bench") / "store"
    write_store(path, rows=3_000, buckets=2_600)
    return path


def assert_trained_alike(hand: Any, engine: Any, *, steps: int, rtol: float, atol: float) -> None:
    """Train both for `steps` steps from equal weights: they move, and end equal."""
    start = [parameter.detach().clone() for parameter in hand.model.parameters()]
    try:
        hand.train(steps)
        engine.train(steps)
    finally:
        engine.close()
    trained = list(engine.trainers[0].model.parameters())
    for left, right, before in zip(hand.model.parameters(), trained, start, strict=True):
        assert not torch.equal(left, before)
        torch.testing.assert_close(left, right, rtol=rtol, atol=atol)


def test_store_is_one_that_training_reads(store):
    from odist.bench.criteo import make_config
    from odist.engine.problem import build_task

    task = build_task(make_config(store, batch=50))
    batch = task.batch(np.arange(3_000), "train")
    ids = batch.inputs[1].numpy()
    assert task.num_rows("validation") == 1_000
    assert ((ids >= np.arange(26) * 100) & (ids < (np.arange(26) + 1) * 100)).all()  # every column has its own
    assert len(np.unique(ids)) > 2_000
    assert 0.2 < float(batch.targets.mean()) < 0.3


@pytest.mark.parametrize("sparse", [True, False])
def test_hand_written_loop_does_the_work_of_the_engine(store, tmp_path, sparse):
    """Equal weights after the same steps, with either optimiser, so the ratio is one of equal work."""
    from odist.bench.criteo import hand_loop, make_config
    from odist.bench.engine import Engine, batches_of
    from odist.engine.problem import build_task, set_up_torch

    config = make_config(store, batch=50, hidden=(8, 4))
    set_up_torch(config)
    task = build_task(config)
    _, batches = batches_of(config, task, start=5, steps=10)
    hand = hand_loop(config, task, batches, sparse=sparse)
    engine = Engine(tmp_path / "run", config, start=5)
    assert_trained_alike(hand, engine, steps=10, rtol=1e-4, atol=1e-6)
    assert engine.run.status["step"] >= 14


@pytest.mark.parametrize("lookahead", [1, 8])
def test_codistilling_engine_hears_its_teacher_in_every_timed_step(store, tmp_path, lookahead):
    from odist.bench.criteo import make_config
    from odist.bench.engine import Engine
    from odist.engine.problem import set_up_torch

    config = make_config(store, batch=50, hidden=(8, 4), num_groups=2, peers=True, interval=8, lookahead=lookahead)
    set_up_torch(config)
    engine = Engine(tmp_path / "run", config, start=6)
    engine.offer(steps=24)
    try:
        engine.train(2)  # the warm-up: up to the first reload
        engine.train(17)
    finally:
        engine.close()
    rows = engine.run.metrics(kind="train").set_index("step")
    assert rows["distill_loss"].isna()[[7, 8]].all()
    assert rows["distill_loss"].notna()[list(range(9, 25))].all()
    assert rows["teacher_age_steps"][[9, 16, 17]].tolist() == [0, 7, 0]


def test_every_arm_runs_once_a_round_and_begins_once():
    calls: list[tuple[str, int]] = []
    arms = [
        Arm(name, lambda steps, name=name: calls.append((name, steps)), steps) for name, steps in (("a", 3), ("b", 1))
    ]
    timings = interleave(arms, rounds=3)
    assert calls == [("a", 3), ("b", 1), ("b", 1), ("a", 3), ("a", 3), ("b", 1)]
    assert {name: len(times) for name, times in timings.items()} == {"a": 3, "b": 3}
    assert all(timing.wall > 0 for times in timings.values() for timing in times)


def test_ratios_are_paired_by_round():
    timings = {
        "slow": [Timing(2.0, 1.0), Timing(9.0, 4.0), Timing(4.0, 4.0)],
        "fast": [Timing(1.0, 0.5), Timing(3.0, 1.0), Timing(4.0, 1.0)],
    }
    row = compare(timings, Ratio("n", "slow", "fast", "t", goal=2.0, at_least=True), batch=100)
    assert row.ratios == [2.0, 3.0, 1.0]
    assert row.cpu == [2.0, 4.0, 4.0]
    assert row.median == 2.0
    assert row.met is True
    assert row.examples_per_second == {"slow": 25.0, "fast": pytest.approx(100 / 3)}


@pytest.mark.parametrize(
    ("goal", "at_least", "met"), [(1.1, False, True), (1.0, False, False), (1.1, True, False), (None, False, None)]
)
def test_goals(goal, at_least, met):
    assert Row("n", "t", [1.2, 1.05, 0.9], goal, at_least).met is met


@pytest.mark.slow
def test_quick_suite_measures_every_row_and_leaves_nothing_behind(tmp_path, monkeypatch):
    from odist.bench.quick import Size, measure

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = Size(rows=3_000, buckets=2_600, hidden=(8,), large=200, interval=8, dense_steps=1)
    said: list[str] = []
    rows = measure(rounds=2, say=said.append, size=size)
    names = [row.name for row in rows]
    assert len(names) == len(set(names))
    assert {"sparse_adagrad_100", "trainer_100", "trainer_200", "codistillation_100", "codistillation_200",
            "lookahead_100", "gather_100", "gather_200"} <= set(names)  # fmt: skip
    assert ("two_processes_100" in names) or any("skipped" in text for text in said)
    for row in rows:
        assert len(row.ratios) == 2
        assert min(row.ratios) > 0
        assert len(row.examples_per_second) == 2
    assert list(tmp_path.glob("odist-bench-*")) == []  # torch may make a folder of its own


def test_teachers_suite_measures_every_row_and_leaves_nothing_behind(tmp_path, monkeypatch):
    from odist.bench.teachers import GOALS, PRECISIONS, Language, Size, measure
    from odist.models.transformer import Transformer
    from odist.products import product

    products = []
    monkeypatch.setattr("odist.products.product", lambda *given: (products.append(1), product(*given))[1])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tiny = Language(lambda: Transformer(60, layers=1, width=32, heads=2), vocabulary=60, batch=2, unroll=6)
    size = Size(rows=3_000, buckets=2_600, hidden=(64, 32), batch=10, interval=8, models={"transformer": tiny})
    rows = {row.name: row for row in measure(rounds=2, say=lambda text: None, size=size)}
    expected = [f"criteo_{precision}{ahead}" for precision in PRECISIONS for ahead in ("", "_ahead")]
    assert list(rows) == [*expected, *(f"transformer_{precision}" for precision in PRECISIONS)]
    for row in rows.values():
        assert len(row.ratios) == 2
        assert min(row.ratios) > 0
    assert rows["transformer_int8"].goal == GOALS["int8"]
    assert products  # the teachers of 8 bits were heard
    assert list(tmp_path.glob("odist-bench-*")) == []


def lm_size(**changes: Any) -> Any:
    from odist.bench.lm import Model, Size

    small = Model(60, 8, (16,), batch=2, steps=2)
    sizes = {"small": small, "paper": Model(90, 8, (12, 12), batch=2, steps=1), "unroll": 6, "batch": 3}
    return Size(**{**sizes, "records": 40, "encoded": 60, "pieces": 300, **changes})


@pytest.mark.parametrize("installed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_lm_suite_measures_every_row_and_leaves_nothing_behind(tmp_path, monkeypatch, installed):
    from odist.bench import lm

    if not installed:
        monkeypatch.setattr(lm, "find_spec", lambda name: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    rows = lm.measure(rounds=2, say=said.append, size=lm_size())
    names = [row.name for row in rows]
    expected = [
        "lstm_threads_1",
        "lstm_threads_2",
        "soft_loss_small",
        "soft_loss_paper",
        "read_wet_payloads",
        "read_wet_lines",
        "encode",
    ]
    if not any("one core" in text for text in said):
        assert "lstm_threads_2" in names
    assert names == [name for name in expected if name in names]
    assert set(expected) - set(names) <= {"lstm_threads_2"} | (
        set() if installed else {"read_wet_payloads", "read_wet_lines"}
    )
    assert any("warcio is not installed" in text for text in said) is not installed
    assert [row.goal for row in rows if row.at_least] == ([2.5, 0.85] if installed else [0.85])
    for row in rows:
        assert len(row.ratios) == 2
        assert min(row.ratios) > 0
        assert len(row.examples_per_second) == 2
    assert list(tmp_path.glob("odist-bench-*")) == []  # torch may make a folder of its own


def test_synthetic_wet_holds_the_same_text_for_every_reader(tmp_path):
    from warcio import archiveiterator as archive

    from odist.bench.lm import write_wet
    from odist.prepare.text.records import RecordOptions, read_source
    from odist.prepare.text.sources import find_text_sources

    path = write_wet(tmp_path / "a.wet.gz", records=30)
    faults: list[str] = []
    (source,) = find_text_sources([str(path)], base_url="")
    reading = RecordOptions("text", passage_words=0, main_content=False)
    raws = read_source(
        source, reading=reading, folder=tmp_path, note=lambda place, kind: faults.append(kind), at=lambda position: None
    )
    own = ["\n".join(raw.lines) for raw in raws]
    with open(path, "rb") as file:
        other = [record.content_stream().read().decode() for record in archive.ArchiveIterator(file)]
    assert own == other
    assert len(set(own)) == 30
    assert 4_000 < np.mean([len(text) for text in own]) < 9_000
    assert faults == []


def test_training_step_with_soft_targets_adds_their_cross_entropy():
    import torch.nn.functional as F

    from odist.bench.lm import Training

    training = Training(lm_size().small, unroll=6)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    logits, _ = training.model(training.tokens)
    hard = F.cross_entropy(logits.flatten(0, 1), training.targets.flatten())
    soft = F.cross_entropy(logits.flatten(0, 1), training.soft.values[0].softmax(-1).flatten(0, 1))
    training.run(1, taught=True)
    torch.testing.assert_close(training.loss, hard + soft)
    assert all(
        not torch.equal(old, new) for old, new in zip(before[1:], list(training.model.parameters())[1:], strict=True)
    )
    other = Training(lm_size().small, unroll=6)
    other.run(1, taught=False)
    torch.testing.assert_close(other.loss, hard)


def test_bare_sentencepiece_encodes_what_the_stage_encodes(tmp_path):
    from odist.bench.lm import Encoding, write_wet

    encoding = Encoding(tmp_path, write_wet(tmp_path / "a.wet.gz", records=60), pieces=300)
    for _ in range(2):
        encoding.bare()
        encoding.stage()
    counts = json.loads(encoding.piece.path("encode.json").read_text())
    assert sum(counts["tokens"].values()) == encoding.num_pieces + len(encoding.sentences)  # an end each
    assert sum(counts["documents"].values()) > 50
    assert counts["duplicates"] == 0


def images_size() -> Any:
    from odist.bench.images import Size

    return Size(photographs=3, height=90, width=120, crop=32, rows=64, batch=4, interval=3)


@pytest.mark.parametrize("installed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_images_suite_measures_every_row_and_leaves_nothing_behind(tmp_path, monkeypatch, installed):
    from odist.bench.images import measure

    if not installed:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    rows = measure(rounds=2, say=said.append, size=images_size())
    decoding = ["decode_web", "decode_imagenet", "decode_short"] if installed else []
    assert [row.name for row in rows] == [
        *decoding, "channels_last", "bf16_channels_last", "bf16", "trainer", "codistillation"]  # fmt: skip
    assert any("decoding: skipped" in text and "odist[images]" in text for text in said) is not installed
    assert [row.goal for row in rows if row.at_least] == [*(2.0 for _ in decoding), 1.6]
    for row in rows:
        assert len(row.ratios) == 2
        assert min(row.ratios) > 0
        assert len(row.examples_per_second) == 2
    assert list(tmp_path.glob("odist-bench-*")) == []  # torch may make a folder of its own


def test_photographs_are_the_same_images_in_every_kind(tmp_path):
    from PIL import Image, JpegImagePlugin

    from odist.bench.images import Size, write_photographs

    write_photographs(tmp_path, Size(photographs=2))
    for number in range(2):
        web, imagenet = (Image.open(tmp_path / kind / "class" / f"{number}.jpg") for kind in ("web", "imagenet"))
        assert web.size == imagenet.size == (500, 375)
        assert (JpegImagePlugin.get_sampling(web), JpegImagePlugin.get_sampling(imagenet)) == (2, 0)
        assert np.abs(np.asarray(web, dtype=float) - np.asarray(imagenet)).mean() < 5
        for kind, low, high in (("web", 30_000, 110_000), ("imagenet", 80_000, 200_000)):
            assert low < (tmp_path / kind / "class" / f"{number}.jpg").stat().st_size < high


@pytest.mark.parametrize("channels_last", [True, False])
def test_hand_written_loop_of_images_does_the_work_of_the_engine(tmp_path, channels_last):
    from odist.bench.engine import Engine, batches_of
    from odist.bench.images import hand_loop, make_config, write_store
    from odist.engine.problem import build_task, set_up_torch

    write_store(tmp_path / "store", rows=40)
    config = make_config(tmp_path / "store", batch=8, interval=4, channels_last=channels_last)
    set_up_torch(config)
    task = build_task(config)
    _, batches = batches_of(config, task, start=3, steps=6)
    hand = hand_loop(config, task, batches)
    engine = Engine(tmp_path / "run", config, start=3)
    assert_trained_alike(hand, engine, steps=6, rtol=1e-3, atol=1e-5)


def test_codistilling_engine_of_images_hears_its_teacher_in_every_timed_step(tmp_path):
    from odist.bench.engine import Engine
    from odist.bench.images import make_config, write_store
    from odist.engine.problem import set_up_torch

    write_store(tmp_path / "store", rows=40)
    config = make_config(tmp_path / "store", batch=8, interval=2, peers=True)
    set_up_torch(config)
    engine = Engine(tmp_path / "run", config, start=0)
    engine.offer(steps=8)
    try:
        engine.train(2)  # the warm-up: up to the first reload
        engine.train(5)
    finally:
        engine.close()
    rows = engine.run.metrics(kind="train").set_index("step")
    assert rows["distill_loss"].isna().tolist() == [True, False, False]
    assert rows["teacher_age_steps"][[4, 6]].tolist() == [1, 1]


@pytest.mark.slow
def test_faults_suite_measures_every_row_and_leaves_nothing_behind(tmp_path, monkeypatch):
    from odist.bench.faults import Size, measure

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    size = Size(rows=3_000, buckets=2_600, hidden=(8,), steps=6, interval=2, kill_steps=100, s3=False)
    rows = measure(rounds=2, say=said.append, size=size, kills=1)
    assert [row.name for row in rows] == ["peer_dead", "peer_hung", "peer_gone", "kills"]
    assert [len(row.ratios) for row in rows] == [2, 2, 2, 1]
    assert min(min(row.ratios) for row in rows) > 0
    assert rows[-1].ratios == [1.0]  # the bits of an undisturbed run
    assert any("skipped" in text for text in said)
    assert list(tmp_path.glob("odist-bench-*")) == []


@pytest.mark.slow
def test_cluster_suite_measures_every_row_and_the_bytes_of_a_ring(tmp_path, monkeypatch):
    from odist.bench.cluster import Size, measure

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = Size(rows=3_000, buckets=26_000, hidden=(64,), processes=(1, 2), steps=2)
    rows = {row.name: row for row in measure(rounds=2, say=lambda text: None, size=size)}
    names = ["fast_1", "exact_1", "fast_2", "exact_2", "tree_2", "sent_exact_2", "sent_fast_2", "sent_ddp_2"]
    assert list(rows) == names
    assert all(len(row.ratios) == 2 and min(row.ratios) > 0 for row in rows.values())
    for arm in ("exact", "fast", "ddp"):  # 2 (P - 1) / P of the gradient, and small messages
        assert rows[f"sent_{arm}_2"].median == pytest.approx(1, abs=0.1)
    assert list(tmp_path.glob("odist-bench-*")) == []


def test_only_faults_are_told_how_many_to_kill():
    with pytest.raises(UserError, match="only `odist bench faults`"):
        bench.run("quick", kills=3)


def test_a_process_that_ends_is_an_error_with_its_last_words(store, tmp_path):
    from odist.bench.criteo import make_config
    from odist.bench.replica import Replicas

    config = make_config(store.parent / "nothing", batch=50, num_groups=2)
    replicas = Replicas(tmp_path, config)
    try:
        with pytest.raises(OdistError, match="no such folder"):
            replicas.wait()
    finally:
        replicas.close()


def make_result(suite: str = "quick") -> bench.Result:
    rows = [
        Row("fast", "a / b", [5.0, 6.0, 4.0], 4.5, True, cpu=[5.1], examples_per_second={"a": 1234.4, "b": 6172.0}),
        Row("small", "fetch | step", [0.0123, 0.0125, 0.0121], 0.01),
        Row("shown", "c / d", [1.25, 1.5, 1.0], None),
    ]
    return bench.Result(suite, f"odist bench {suite} --rounds 3", 3, 61.26, (0.5, 2.0), rows)


def test_page_shows_numbers_goals_hardware_and_command():
    page = bench.markdown(make_result())
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:1] == "|"]
    assert lines[2] == ["a / b", "4.00 – 5.00 – 6.00", "≥ 4.5", "yes", "5.10", "1 234 / 6 172"]
    assert lines[3][1:4] == ["0.0121 – 0.0123 – 0.0125", "≤ 0.01", "no"]
    assert lines[4][:4] == ["c / d", "1.000 – 1.250 – 1.500", "–", "–"]
    assert "`odist bench quick --rounds 3`" in page
    assert f"torch {torch.__version__.split('+')[0]}" in page
    assert " cores" in page


def test_page_says_what_the_suite_measures():
    quick, lm, images = (bench.markdown(make_result(suite)) for suite in ("quick", "lm", "images"))
    assert "Criteo" in quick
    assert "Criteo" not in lm
    assert "language model" in lm
    assert "ResNet-8" in images
    assert "paired within each of 3 interleaved rounds" in lm


def test_every_suite_has_a_module_that_measures():
    for suite in bench.SUITES:
        assert callable(bench.measure_of(suite))


def test_unknown_suite():
    with pytest.raises(UserError, match="Did you mean quick"):
        bench.run("quik")


def test_json_holds_every_round():
    content = json.loads(json.dumps(make_result().to_dict()))
    assert content["rows"][0]["ratios"] == [5.0, 6.0, 4.0]
    assert content["rows"][0]["goal_is"] == "at least"
    assert [row["met"] for row in content["rows"]] == [True, False, None]
    assert content["hardware"]["cores"] >= 1
    assert (content["load_before"], content["load_after"]) == (0.5, 2.0)


def test_output_must_be_a_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="expected a folder"):
        bench.run("quick", output=file)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("arguments", [["nope"], ["quick", "--rounds", "0"], []])
def test_wrong_words_end_with_2(arguments, tmp_path):
    command = [sys.executable, "-m", "odist.cli.main", "bench", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_page_of_a_device_has_every_model_and_way(tmp_path, monkeypatch):
    from odist.bench import gpu

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = gpu.run(device="cpu", output=tmp_path / "hardware", say=lambda text: None)
    assert path == tmp_path / "hardware" / "cpu.md"
    rows = [line.split("|")[1:-1] for line in path.read_text().splitlines() if line.startswith("| ")][2:]
    assert [row[0].split(":")[0].strip() for row in rows] == [task for task in gpu.WORDS for _ in gpu.SMALL.ways]
    assert {row[1].strip() for row in rows} == {"fp32, one teacher", "bf16, no teacher"}
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
    assert "Not measured" not in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["hardware"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_the_page_of_a_gpu_is_refused_without_one():
    from odist.bench import gpu

    with pytest.raises(UserError, match="--device cuda: torch"):
        gpu.run(say=lambda text: None)
