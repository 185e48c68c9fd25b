"""Figures of run folders and of reports: what shares one, what is in the legend, and how a system looks."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import compose

from odist.claims import style
from odist.claims.plot import plot_runs
from odist.errors import UserError
from odist.run.folder import Run


def make_run(path: Path, config: dict[str, Any], *, rows: str, seed: int = 1, steps: int = 3, **changes: Any) -> Run:
    """A finished run with curves and predictions. config: composed; changes: keys with `__` for the dot; rows: fingerprint."""
    config = copy.deepcopy(config) | {"seed": seed}
    for key, value in changes.items():
        *nodes, last = key.split("__")
        node = config
        for name in nodes:
            node = node[name]
        node[last] = value
    run = Run.create(path, config, overrides=[], env={"data_fingerprint": rows})
    metric = "log_loss" if config["task"]["name"] == "criteo" else "cross_entropy"
    draw = np.random.default_rng(seed)
    lines = [
        {"kind": "evaluate", "group": 0, "step": step, "examples": 50 * step, "seconds": 0.1 * step,
         metric: 0.7 - 0.01 * step + 0.001 * float(draw.random())}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    root = run.prediction_root("validation")
    root.mkdir(parents=True)
    np.save(root / "group-0.npy", draw.random(20))
    np.save(root / "targets.npy", np.arange(20) % 2)
    (root / "meta.json").write_text(json.dumps({"num_groups": 1, "predictor": "group-0", "fingerprint": rows}))
    run.write_json(
        "results.json", {"predictor": "group-0", "metrics": {metric: 0.5}, "groups": [], "split": "validation"}
    )
    run.set_status(state="finished", step=steps, num_steps=steps)
    return run


def texts(svg: Path) -> list[str]:
    """What stands in a figure: matplotlib draws letters as paths and leaves each line beside them as a comment."""
    lines = re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))
    return re.sub(r",\n", ", ", "\n".join(lines).replace("\xa0", " ")).split("\n")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """33 runs of a day of work: three tasks, four sets of rows, every algorithm, batches, rates, strategies, places."""
    root = tmp_path_factory.mktemp("runs")
    algorithms = ("sync", "codistill", "ensemble", "label_smoothing", "delayed", "local_sgd")
    criteo = {name: compose(f"algorithm={name}") for name in algorithms}
    lm = {name: compose("task=lm", f"algorithm={name}") for name in ("sync", "codistill", "ensemble")}
    images = {name: compose("task=imagenet", f"algorithm={name}") for name in ("sync", "codistill", "ensemble")}
    runs = [make_run(root / f"c-{name}-{seed}", config, rows="aaaa1111bb", seed=seed)
            for name, config in criteo.items() for seed in (1, 2)]  # fmt: skip
    for place, changes in enumerate((
        {"train__batch": 100}, {"train__batch": 100, "optim__lr": 0.01}, {"optim__lr": 0.07, "algorithm__burn_in": 400},
        {"launch__name": "local", "exchange__name": "store", "train__log_every": 500, "seed": 3}, {"scale": "small"},
    )):  # fmt: skip
        runs.append(make_run(root / f"cs-{place}", criteo["sync"], rows="aaaa1111bb", **changes))
    for place, changes in enumerate((
        {"data__partition": "disjoint"}, {"algorithm__strategy": "delayed", "workers": 4}, {"num_groups": 4},
        {"exchange__interval": 777, "algorithm__distill_loss": "squared_logits"},
    )):  # fmt: skip
        runs.append(make_run(root / f"cc-{place}", criteo["codistill"], rows="aaaa1111bb", **changes))
    prepared = {"data__name": "prepared", "data__path": "/somewhere/real rows"}
    runs += [make_run(root / f"r-{name}", criteo[name], rows="cccc2222", **prepared) for name in ("sync", "codistill")]
    runs += [
        make_run(root / f"l-{name}-{seed}", lm[name], rows="dddd3333", seed=seed) for name in lm for seed in (1, 2)
    ]
    runs += [make_run(root / f"i-{name}", images[name], rows="eeee4444") for name in images]
    runs.append(make_run(root / "i-deep", images["sync"], rows="eeee4444", model__depth=20))
    assert len(runs) == 33
    return runs


def test_a_figure_holds_one_task_and_one_set_of_rows(mixed: list[Run], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = plot_runs(mixed, output=tmp_path)
    names = {path.stem for path in written}
    assert names == {
        "criteo-synthetic-aaaa1111-log_loss", "criteo-synthetic-aaaa1111-tradeoff", "criteo-real_rows-cccc2222-log_loss",
        "lm-synthetic-dddd3333-cross_entropy", "lm-synthetic-dddd3333-tradeoff", "imagenet-synthetic-eeee4444-cross_entropy",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert "lm, synthetic data (dddd3333)" in texts(tmp_path / "lm-synthetic-dddd3333-cross_entropy.svg")


def test_a_legend_names_at_most_three_keys_that_decide_and_are_read(mixed: list[Run], tmp_path: Path) -> None:
    plot_runs(mixed, output=tmp_path, metrics=["log_loss"])
    said = texts(tmp_path / "criteo-synthetic-aaaa1111-log_loss.svg")
    words = " ".join(said)
    assert not re.search(r"burn_in|average_every|log_every|exchange|prefetch|store|inline|None", words)
    legend = [text for text in said if text.startswith(("sync", "codistill"))]
    assert (
        len(legend) == 10
    )  # of 13 runs: the retrains, and the sync runs that differ in nothing that sync reads, are one
    assert len(set(legend)) == len(legend)
    assert all(text.count(",") <= 3 for text in legend)
    assert legend[:5] == [
        "sync, smoke scale, batch 50, lr 0.05 (3 seeds)", "sync, smoke scale, batch 100, lr 0.05",
        "sync, smoke scale, batch 100, lr 0.01", "sync, smoke scale, batch 50, lr 0.07", "sync, small scale, batch 50, lr 0.05",
    ]  # fmt: skip
    assert {"codistill, disjoint rows", "codistill, delayed, 4 workers", "codistill, 4 groups"} < set(legend)


def test_bands_bars_and_a_member_s_curve_are_explained_in_the_figure(mixed: list[Run], tmp_path: Path) -> None:
    three_retrains = [
        run for run in mixed if run.name.startswith("c-") or run.name == "cs-3"
    ]  # of sync; two of the others
    plot_runs(three_retrains, output=tmp_path)
    curves = " ".join(texts(tmp_path / "criteo-synthetic-aaaa1111-log_loss.svg"))
    assert "Lines: means over seeds; bands: from the lowest to the highest seed." in curves
    assert "Bars: 95 % intervals over retrains." in texts(tmp_path / "criteo-synthetic-aaaa1111-tradeoff.svg")


def test_the_same_runs_give_the_same_bytes(mixed: list[Run], tmp_path: Path) -> None:
    runs = [run for run in mixed if run.name.startswith("l-")]
    first = plot_runs(runs, output=tmp_path / "one", x="steps")
    assert first[0].read_bytes()[:4] == b"\x89PNG"
    second = plot_runs(runs, output=tmp_path / "two", x="steps")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    [_, by_time] = plot_runs(runs, output=tmp_path / "time", metrics=["cross_entropy"], x="seconds")
    assert "training time (s, without evaluation)" in texts(by_time)
    assert not list(tmp_path.rglob(".*"))


def test_what_cannot_be_plotted_is_said(mixed: list[Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run has the metric 'auk'. They have: log_loss"):
        plot_runs(mixed[:1], output=tmp_path, metrics=["auk"])
    with pytest.raises(UserError, match="examples, steps, seconds"):
        plot_runs(mixed[:1], output=tmp_path, x="epochs")
    with pytest.raises(UserError, match="no runs"):
        plot_runs([], output=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [1, 6, 40])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_legend_of_any_length_lies_below_panels_of_full_size(number: int, columns: int) -> None:
    names = {f"codistill, delayed, {'a rather long value of a key ' * (n % 4)}{n}": "codistill" for n in range(number)}
    with style.panels(columns) as (figure, axes):
        for panel in axes:
            panel.plot([0, 1000], [0.1, 0.2])
            style.finish(panel, x="x", y="y")
        style.legend(figure, style.looks(names), notes=["Lines: means over seeds. " * 9])
        style.check_layout(figure)
        width, height = figure.get_size_inches()
        for panel in axes:
            place = panel.get_position()
            assert place.width * width > 3.5
            assert place.height * height > 2.4


def test_a_figure_without_room_is_refused_and_not_written(tmp_path: Path) -> None:
    for size in ((4.8, 2.0), (2.0, 9.0)):
        with style.panels(1) as (figure, [panel]):
            panel.plot([0, 1], [0, 1])
            style.legend(figure, style.looks({f"a system with a long name {n}": "sync" for n in range(12)}))
            figure.set_size_inches(*size)
            with pytest.raises(UserError, match=r"leave no room for the panels.*Plot fewer systems"):
                style.save(figure, tmp_path / "figure")
    assert not list(tmp_path.iterdir())


def test_a_system_has_the_colour_of_its_algorithm_whatever_stands_beside_it() -> None:
    alone = style.looks({"pair": "codistill"})
    among = style.looks({"a": "sync", "b": "ensemble", "pair": "codistill", "other pair": "codistill", "own": "mine"})
    assert alone["pair"] == among["pair"] == style.look("codistill")
    assert len({look.colour for look in among.values()}) == 5
    fixed = style.looks({"x": "sync", "y": "sync"}, shades={"y": 0})
    assert (fixed["y"], fixed["x"]) == (style.look("sync", 0), style.look("sync", 1))
    every = [style.look(name, shade) for name in (*style.ALGORITHMS, "mine") for shade in range(20)]
    assert len(set(every)) == len(every)
