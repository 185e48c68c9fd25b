"""What every strategy, teacher, exchange and algorithm promises, over the registries: a new part without its rows fails here.

Each is stopped and continued (a row of tests/test_resume.py, which shows that the same run twice has the same bits, too), and each has a
degenerate case that equals something simpler: the test that shows it is named here, or the case is in CASES and run here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from conftest import CONF, weight_hashes
from test_resume import RUNS

from odist import registry
from odist.config.options import CHOSEN_BY

TESTS = Path(__file__).parent
SMALL = ("train.max_examples=600", "train.batch=50", "algorithm.burn_in=200", "exchange.interval=100")

# Part: what it equals where nothing is left of it, and who shows it. A new part is one row here or in CASES.
SHOWN = {
    ("strategies", "allreduce"): "test_algorithms.test_workers_times_batch_is_one_big_batch",
    ("strategies", "delayed"): "test_algorithms.test_delayed_without_delay_is_sync_at_one_worker",
    ("strategies", "diloco"): "test_rivals.test_diloco_with_one_worker_and_a_plain_outer_step_is_the_inner_optimizer",
    ("strategies", "parameter_server"): "test_async.test_alone_a_worker_is_sync_to_the_bit",
    ("strategies", "local_sgd"): "test_algorithms.test_local_sgd_that_averages_at_every_step_is_sync",
    ("teachers", "fixed"): "test_algorithms.test_a_finished_run_teaches_as_itself",
    ("teachers", "peers"): "test_algorithms.test_weight_zero_is_the_ensemble_and_group_0_is_the_single_model",
    ("teachers", "population"): "test_rivals.test_a_population_without_a_pull_is_the_ensemble",
    ("exchange", "memory"): "test_algorithms.test_a_reload_at_every_step_is_the_same_in_memory_and_through_a_store",
    ("exchange", "predictions"): "test_predictions_exchange.test_it_is_the_exchange_of_weights_at_every_step",
    ("exchange", "store"): "test_algorithms.test_a_reload_at_every_step_is_the_same_in_memory_and_through_a_store",
}
# What is stopped and continued without a promise of bits, and who shows that nothing is lost.
CONTINUED = {
    (
        "strategies",
        "parameter_server",
    ): "test_async.test_a_real_run_is_followed_to_the_bit_and_a_killed_worker_hurts_nobody",
    ("algorithms", "async"): "test_async.test_a_real_run_is_followed_to_the_bit_and_a_killed_worker_hurts_nobody",
}
# Part: what is typed, and what has the same bits.
CASES = {
    ("teachers", "none"): ("algorithm=ensemble num_groups=1", "algorithm=sync"),
    ("teachers", "constant"): (
        "algorithm=label_smoothing algorithm.label_weight=1 algorithm.distill_weight=0",
        "algorithm=sync",
    ),
}
PARTS = [(kind, name) for kind in CHOSEN_BY for name in registry.own(kind)]
ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))


def chosen(row: tuple[str, ...]) -> dict[str, str]:
    """Strategy, teacher and exchange of a row of RUNS."""
    _, algorithm, strategy, exchange, _ = row
    content = yaml.safe_load((CONF / "algorithm" / f"{algorithm}.yaml").read_text(encoding="utf-8"))
    teacher = content["algorithm"].get("teacher", "none")
    return {"strategies": strategy, "teachers": teacher, "exchange": exchange}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_is_stopped_and_continued_in_some_row(kind: str, name: str) -> None:
    if (kind, name) in CONTINUED:
        assert is_a_test(CONTINUED[kind, name])
        return
    assert name in {chosen(row)[kind] for row in RUNS}, f"add a row for {kind} {name} to RUNS of tests/test_resume.py"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_stopped_and_continued(name: str) -> None:
    if ("algorithms", name) in CONTINUED:
        assert is_a_test(CONTINUED["algorithms", name])
        return
    assert name in {row[1] for row in RUNS}, f"add a row for algorithm={name} to RUNS of tests/test_resume.py"


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_has_a_degenerate_case(kind: str, name: str, train) -> None:
    if (kind, name) in CASES:
        typed, same = CASES[kind, name]
        runs = [train(*SMALL, *words.split(), name=str(number)) for number, words in enumerate((typed, same))]
        assert weight_hashes(runs[0]) == weight_hashes(runs[1])
        return
    assert (kind, name) in SHOWN, f"name the test that shows what {kind} {name} equals where nothing is left of it"
    assert is_a_test(SHOWN[kind, name])


def is_a_test(place: str) -> bool:
    """Whether there is a test of this name, `file.test`."""
    file, _, test = place.partition(".")
    tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
    return test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
