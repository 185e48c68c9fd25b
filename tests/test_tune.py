"""Tuning a recipe with real training processes, and what reproducing it does with the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from odist.claims.recipe_file import load_recipe, parse_recipe
from odist.claims.record import RUNS_FILE, TRIALS_FILE, Record, Trial, read_lines
from odist.claims.reproduce import reproduce
from odist.claims.tune import TuneResult, tune
from odist.claims.tuning import FILE, Tried, TuningFile, choose, read_tuning, towards_baseline
from odist.config.identity import flatten
from odist.errors import OdistError, UserError
from odist.run.folder import Run

PROJECT = Path(__file__).resolve().parent.parent
RECIPE = """
title: Tiny
reference: dnn
seeds: [1]
metrics: [log_loss, mean_abs_difference]
overrides: [task=criteo, data=synthetic, optim=sgd, train.max_examples=200, task.synthetic.validation_rows=200]
systems:
  dnn: {label: One network, overrides: [algorithm=sync]}
  wide: {label: Wide batch, overrides: [algorithm=sync, train.batch=100]}
scales: {smoke: {}}
variants: {made: {label: Synthetic}, real: {overrides: [data=prepared, "data.path=${data_path}"], needs: data_path}}
tuning: {key: optim.lr, grid: [0.5, 1.0, 2.0], seeds: [101], metric: log_loss, overrides: [data.holdout=tuning], extensions: 1}
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TuneResult, list[str]]:
    """The recipe tuned once: its folder, the result, and the lines printed."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "tiny.yaml").write_text(RECIPE)
    lines: list[str] = []
    result = tune(root / "tiny.yaml", output=root / "reports", runs_dir=root / "runs", jobs=3, echo=lines.append)
    return root, result, lines


def tuning_of(result: TuneResult) -> TuningFile:
    tuning = read_tuning(result.path)
    assert tuning is not None
    return tuning


def test_every_system_gets_the_same_trials_on_rows_and_seeds_that_are_not_reported(
    tuned: tuple[Path, TuneResult, list[str]],
) -> None:
    root, result, _ = tuned
    assert result.left_out == {"real": "data_path"}
    made = tuning_of(result).scales["smoke"]["made"]
    trials = read_lines(root / "reports" / "tiny" / TRIALS_FILE, Trial).lines
    for system in ("dnn", "wide"):
        own = [trial for trial in trials if trial.system == system]
        assert sorted(trial.value for trial in own) == made.grid
        assert {trial.seed for trial in own} == {101}
        assert {trial.config["data.holdout"] for trial in own} == {"tuning"}
        assert all(trial.env["source_hash"] for trial in own)
    assert all(len(trial.text) < 8_000 for trial in trials)
    assert not list((root / "runs").rglob("*.safetensors"))  # a trial's weights are of no use
    assert str(root) not in result.path.read_text()


def test_the_chosen_value_has_the_lowest_loss_of_the_runs_themselves(
    tuned: tuple[Path, TuneResult, list[str]],
) -> None:
    root, result, lines = tuned
    made = tuning_of(result).scales["smoke"]["made"]
    for system in ("dnn", "wide"):
        losses = {}
        for run in Run.find(root / "runs" / "tiny" / "smoke" / "tuning"):
            if run.name.startswith(f"made-{system}-lr"):
                config = dict(flatten(run.config))
                losses[config["optim.lr"]] = run.results["metrics"]["log_loss"]
        assert sorted(losses) == made.grid
        best = min(losses, key=lambda value: losses[value])
        assert result.chosen["made", system] == best
        assert made.systems[system].batch == {"dnn": 50, "wide": 100}[system]
        at_edge = best in (min(losses), max(losses))
        assert (("made", system) in result.at_edge) == at_edge
        edge_extended = len(made.grid) > 3
        assert edge_extended or not at_edge
    assert any(line.startswith("made dnn: optim.lr=") for line in lines)
    if len(made.grid) > 3:
        assert any("extended" in line for line in lines)


def test_reproduce_uses_and_shows_what_was_tuned(tuned: tuple[Path, TuneResult, list[str]]) -> None:
    root, result, _ = tuned
    done = reproduce(root / "tiny.yaml", output=root / "reports", runs_dir=root / "runs", jobs=2, echo=lambda _: None)
    chosen = result.chosen["made", "dnn"]
    record, _ = read_lines(done.folder / RUNS_FILE, Record).lines
    assert record.config["optim"]["lr"] == chosen
    assert record.config["data"]["holdout"] == "validation"
    page = (done.folder / "tiny.md").read_text()
    made = tuning_of(result).scales["smoke"]["made"]
    [tried] = [tried for tried in made.systems["dnn"].values if tried.value == chosen]
    assert "## How the settings were tuned" in page
    assert f"**{tried.mean:.5f}**" in page
    assert page.count("untuned") == 0
    # A run made with another value than the chosen one is said to be so.
    tuning = json.loads((done.folder / "tuning.json").read_text())
    tuning["scales"]["smoke"]["made"]["systems"]["dnn"]["chosen"] = 7.0
    (done.folder / "tuning.json").write_text(json.dumps(tuning))
    lines: list[str] = []
    reproduce(root / "tiny.yaml", output=root / "reports", runs_dir=root / "runs", only_report=True, echo=lines.append)
    assert f"One network ran with `optim.lr` {chosen:g}, tuning chose 7" in (done.folder / "tiny.md").read_text()


def test_only_the_named_variants_are_tuned_and_the_others_keep_what_was_found(
    tuned: tuple[Path, TuneResult, list[str]], tmp_path: Path
) -> None:
    _, result, _ = tuned
    shutil.copytree(result.path.parent, tmp_path / "reports" / "tiny")
    trials = tmp_path / "reports" / "tiny" / TRIALS_FILE
    before = trials.read_bytes().splitlines()
    again = RECIPE.replace("real:", "again: {label: Again, overrides: [data=synthetic], without: [wide]}, real:")
    (tmp_path / "tiny.yaml").write_text(again.replace("extensions: 1", "extensions: 0"))
    where = {"output": tmp_path / "reports", "runs_dir": tmp_path / "runs", "jobs": 3}
    later = tune(tmp_path / "tiny.yaml", variants=["again"], echo=lambda _: None, **where)
    assert {variant for variant, _ in later.chosen} == {"again"}
    assert len(later.commands) == 3
    assert before
    assert [trial.variant for trial in read_lines(trials, Trial).lines[:3]] == ["again"] * 3
    assert trials.read_bytes().splitlines()[3:] == before
    found = tuning_of(later).scales["smoke"]
    assert set(found) == {"made", "again"}
    assert found["made"] == tuning_of(result).scales["smoke"]["made"]
    with pytest.raises(UserError, match=r"no variant 'mad' at scale smoke. Choose among: made, again, real\."):
        tune(tmp_path / "tiny.yaml", variants=["mad"], **where)


def test_recorded_trials_are_taken_where_settings_are_the_same(
    tuned: tuple[Path, TuneResult, list[str]], tmp_path: Path
) -> None:
    _, result, _ = tuned
    shutil.copytree(result.path.parent, tmp_path / "reports" / "tiny")
    before = read_lines(tmp_path / "reports" / "tiny" / TRIALS_FILE, Trial).lines
    grid = tuning_of(result).scales["smoke"]["made"].grid
    more = RECIPE.replace("seeds: [101]", "seeds: [101, 102]").replace("[0.5, 1.0, 2.0]", str(grid))
    more = more.replace("extensions: 1", "extensions: 0")

    def tune_again(recipe: str, *, folder: str, again: bool = False) -> tuple[TuneResult, list[str], set[str]]:
        """The result, the lines printed and the names of the runs that were trained."""
        (tmp_path / "tiny.yaml").write_text(recipe)
        lines: list[str] = []
        done = tune(
            tmp_path / "tiny.yaml",
            output=tmp_path / "reports",
            runs_dir=tmp_path / folder,
            jobs=3,
            again=again,
            echo=lines.append,
        )
        return done, lines, {run.name for run in Run.find(tmp_path / folder / "tiny" / "smoke" / "tuning")}

    # a trial that fails costs no other: those that ended are recorded
    with pytest.raises(OdistError, match="runs failed"):
        tune_again(more.replace("train.batch=100", "train.batch=0"), folder="failing")
    ended = read_lines(tmp_path / "reports" / "tiny" / TRIALS_FILE, Trial).lines
    assert [(trial.system, trial.value) for trial in ended if trial.seed == 102] == [("dnn", value) for value in grid]

    done, lines, trained = tune_again(more, folder="more")
    assert len(done.commands) == 4 * len(grid)
    assert trained == {f"made-wide-lr{value:g}-s102" for value in grid}
    assert (
        f"{3 * len(grid)} of {4 * len(grid)} trials are in tuning.jsonl already; --again takes none from there" in lines
    )
    after = read_lines(tmp_path / "reports" / "tiny" / TRIALS_FILE, Trial).lines
    assert [trial for trial in after if trial.seed == 101] == before
    made = tuning_of(done).scales["smoke"]["made"]
    assert made.seeds == [101, 102]
    for system, entry in made.systems.items():
        for tried in entry.values:
            own = {str(trial.seed): trial for trial in after if (trial.system, trial.value) == (system, tried.value)}
            metrics = {seed: (trial.metrics or {}).get("log_loss") for seed, trial in own.items()}
            assert tried.by_seed == metrics
            assert set(metrics) == {"101", "102"}

    # a setting that all-reduce does not read is no reason to train a trial again
    unread = more.replace("optim=sgd", "optim=sgd, algorithm.average_every=400")
    _, lines, trained = tune_again(unread, folder="unread")
    assert trained == set()
    assert (
        f"{4 * len(grid)} of {4 * len(grid)} trials are in tuning.jsonl already; --again takes none from there" in lines
    )

    # one system with another batch: its trials are trained, those of the other are taken
    other, _, trained = tune_again(more.replace("train.batch=100", "train.batch=40"), folder="other")
    assert len(trained) == 2 * len(grid)
    assert all("-wide-" in name for name in trained)
    assert tuning_of(other).scales["smoke"]["made"].systems["wide"].batch == 40

    _, lines, trained = tune_again(more.replace("seeds: [101, 102]", "seeds: [101]"), folder="again", again=True)
    assert len(trained) == 2 * len(grid)
    assert not any("already" in line for line in lines)


def test_reproduce_says_loudly_that_nothing_was_tuned(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    lines: list[str] = []
    where = {"output": tmp_path / "reports", "runs_dir": tmp_path / "runs"}
    reproduce(tmp_path / "tiny.yaml", dry_run=True, echo=lines.append, **where)
    assert lines[1] == (
        "untuned: made at scale smoke uses the preset's optim.lr for every system; "
        "`odist tune tiny --scale smoke` tunes it"
    )


def test_a_dry_run_prints_the_first_grid_and_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    lines: list[str] = []
    result = tune(
        tmp_path / "tiny.yaml", output=tmp_path / "r", runs_dir=tmp_path / "runs", dry_run=True, echo=lines.append
    )
    assert len(result.commands) == 6
    assert sum("data.holdout=tuning" in line and "seed=101" in line for line in lines) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_scale_may_have_a_grid_of_its_own(tmp_path: Path) -> None:
    own = "{smoke: {tuning_grid: [0.1, 0.2, 0.4, 0.8]}, small: {}}"
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("{smoke: {}}", own))
    for scale, grid in {"smoke": ["0.1", "0.2", "0.4", "0.8"], "small": ["0.5", "1", "2"]}.items():
        result = tune(tmp_path / "tiny.yaml", scale=scale, dry_run=True, echo=lambda line: None)
        rates = [word for command in result.commands for word in command if word.startswith("optim.lr=")]
        assert sorted(set(rates)) == [f"optim.lr={value}" for value in grid]
    with pytest.raises(UserError, match="each twice the one before"):
        parse_recipe(RECIPE.replace("{smoke: {}}", "{smoke: {tuning_grid: [0.1, 0.3, 0.4]}}"), name="tiny")


@pytest.mark.parametrize("recipe", ["lm", "criteo_table1", "imagenet_fig3", "imagenet_equal_budget"])
def test_grids_at_scale_paper_hold_the_rates_of_their_sources(recipe: str) -> None:
    published = {"lm": [0.1, 0.2, 0.4], "criteo_table1": [0.001]}
    grid = load_recipe(recipe).layer("paper").tuning_grid
    assert grid is not None
    assert set(published.get(recipe, [0.1])) <= set(grid)


@pytest.mark.parametrize("path", sorted((PROJECT / "reports").glob(f"*/{FILE}")), ids=lambda path: path.parent.name)
def test_committed_tunings_are_written_as_they_were_read(path: Path, tmp_path: Path) -> None:
    tuning = read_tuning(path)
    assert tuning is not None
    tuning.write(tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == path.read_bytes()


def test_a_file_that_is_not_a_tuning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for text, message in (
        ("{", "damaged"),
        ("{}", "not a tuning of this version"),
        (
            '{"format": "odist-tuning-1", "recipe": "r", "scales": {"small": {"all": {}}}}',
            "scales.small.all: lacks key",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{message}.*Delete it and start `odist tune` again"):
            read_tuning(path)


def test_a_diverged_trial_is_never_chosen_and_edges_are_seen() -> None:
    assert choose({0.1: 0.5, 0.2: 0.4, 0.4: None}, metric="log_loss") == (0.2, None)
    assert choose({0.1: 0.5, 0.2: 0.4, 0.4: 0.3}, metric="log_loss") == (0.4, "high")
    assert choose({0.1: 0.5, 0.2: 0.4, 0.4: 0.3}, metric="auc") == (0.1, "low")
    assert choose({0.1: 0.5, 0.2: 0.7, 0.4: 0.6, 0.8: None}, metric="top1") == (0.2, None)
    assert choose({0.1: 0.5, 0.2: 0.7, 0.4: 0.6}, metric="calibration_error") == (0.1, "low")
    assert choose({0.1: 0.4, 0.2: 0.4, 0.05: 0.5}, metric="log_loss") == (0.1, None)
    assert choose({0.1: None, 0.2: None}, metric="log_loss") == (None, None)


def grid_of(by_value: dict[float, list[float] | None]) -> list[Tried]:
    return [
        Tried(
            value=value,
            mean=None if losses is None else sum(losses) / len(losses),
            by_seed={str(seed): None if losses is None else losses[seed] for seed in range(len(losses or [0]))},
        )
        for value, losses in by_value.items()
    ]


def test_a_choice_moves_towards_the_baselines_as_far_as_one_standard_error_allows() -> None:
    noise = [0.000, 0.004, -0.003, 0.002, -0.001]  # of seeds, in common
    own = [
        0.0004,
        -0.0006,
        0.0005,
        0.0009,
        -0.0002,
    ]  # of one value: its mean is 0.0002 above the best, its error 0.00027
    by_value: dict[float, list[float] | None] = {
        0.01: [0.506 + n for n in noise],
        0.02: [0.5 + n + o for n, o in zip(noise, own, strict=True)],
        0.04: [0.5 + n for n in noise],
        0.08: None,
    }
    choose_it = {"best": 0.04, "metric": "log_loss"}
    assert towards_baseline(grid_of(by_value), baseline=0.02, **choose_it) == 0.02
    assert towards_baseline(grid_of(by_value), baseline=0.01, **choose_it) == 0.02
    assert towards_baseline(grid_of(by_value), baseline=0.08, **choose_it) == 0.04
    assert towards_baseline(grid_of(by_value), baseline=0.04, **choose_it) == 0.04
    worse = by_value | {0.02: [0.501 + n + o for n, o in zip(noise, own, strict=True)]}
    assert towards_baseline(grid_of(worse), baseline=0.02, **choose_it) == 0.04
    accuracy = {value: None if losses is None else [1 - loss for loss in losses] for value, losses in by_value.items()}
    assert towards_baseline(grid_of(accuracy), best=0.04, baseline=0.01, metric="top1") == 0.02
    single = {value: losses and losses[:1] for value, losses in by_value.items()}
    assert towards_baseline(grid_of(single), baseline=0.02, **choose_it) == 0.04


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[0.5, 1.0, 2.0]", "[0.5, 1.0]", "three or more numbers, each twice"),
        ("[0.5, 1.0, 2.0]", "[0.5, 1.0, 1.9]", "three or more numbers, each twice"),
        ("seeds: [101]", "seeds: [1, 101]", "seed 1 is also reported"),
        (
            "algorithm=sync, train.batch=100]",
            "algorithm=distill], teachers: dnn",
            "wide begins with finished runs of dnn",
        ),
        ("key: optim.lr", "keys: optim.lr", "tuning: unknown key 'keys'. Did you mean key"),
    ],
)
def test_mistakes_in_a_tuning_section_are_named(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(UserError, match=message):
        parse_recipe(RECIPE.replace(old, new, 1), name="tiny")


def test_a_recipe_without_a_tuning_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE.split("tuning:")[0])
    with pytest.raises(UserError, match="has no `tuning` section"):
        tune(tmp_path / "tiny.yaml", output=tmp_path, runs_dir=tmp_path)
