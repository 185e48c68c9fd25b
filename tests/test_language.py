"""The language task: lanes, the generator, metrics, and runs against loops written out by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_config, weight_hashes
from scipy import stats
from token_stores import write_token_store

from odist import losses
from odist.config.read import load
from odist.config.schema import SyntheticTextConfig
from odist.data.lanes import Documents, EvaluationLanes, TrainingLanes, union
from odist.data.order import order_seed
from odist.engine.checkpoint import common_step, load_weights
from odist.engine.evaluation import evaluate
from odist.errors import UserError
from odist.launch.check import validate
from odist.losses import LossOptions, Soft, multiclass
from odist.measure.churn import churn
from odist.rng import derive
from odist.tasks.lm import LMTask
from odist.tasks.synthetic_text import END, SyntheticText

LENGTHS = np.array([7, 1, 40, 13, 90, 25, 2, 61])
DOCUMENTS = Documents(1000 * np.arange(8), LENGTHS)  # 239 tokens; addresses tell the documents apart
TEXT = SyntheticTextConfig(vocabulary=60, topics=3, names=5, document_length=40, followers=4)
GENERATOR = SyntheticText(TEXT, seed=3)


def lanes(**changed) -> TrainingLanes:
    return TrainingLanes(DOCUMENTS, **{"lanes": 3, "unroll": 8, "seed": 5, **changed})


# ---- lanes


def test_a_lane_reads_on_where_it_ended():
    order = lanes()
    for step in range(order.steps_per_pass - 1):
        assert np.array_equal(order.ids(step)[:, -1], order.ids(step + 1)[:, 0])
        assert order.ids(step).shape == (3, 9)


def test_lanes_are_a_pure_function_of_the_step():
    forward = [lanes().ids(step) for step in range(25)]
    order = lanes()
    for step in (24, 0, 11, 23, 1):
        assert np.array_equal(order.ids(step), forward[step])
    assert not np.array_equal(lanes(seed=6).ids(0), forward[0])


def test_a_pass_reads_no_token_twice_and_the_next_pass_has_another_order():
    order = lanes()
    per_pass = order.steps_per_pass
    passes = [np.concatenate([order.ids(p * per_pass + s)[:, :-1].ravel() for s in range(per_pass)]) for p in range(3)]
    known = {address + offset for address, length in zip(DOCUMENTS.addresses, LENGTHS, strict=True) for offset in range(length)}  # fmt: skip
    for tokens in passes:
        assert len(set(tokens.tolist())) == len(tokens) == per_pass * 24
        assert set(tokens.tolist()) <= known
    assert not np.array_equal(passes[0], passes[1])


def test_within_a_document_tokens_follow_each_other():
    ids = lanes().ids(0)
    steps = np.diff(ids, axis=1)
    assert ((steps == 1) | (ids[:, 1:] % 1000 == 0)).all()  # the next token, or the beginning of a document


@pytest.mark.parametrize("steps", [1, 4, 9, 20])
def test_what_was_read_is_counted_exactly(steps):
    orders = [lanes(seed=seed) for seed in (1, 2)]
    read = {int(token) for order in orders for step in range(steps) for token in order.ids(step)[:, :-1].ravel()}
    starts, stops = (np.concatenate(ends) for ends in zip(*(order.read(steps) for order in orders), strict=True))
    assert union(starts, stops) == len(read)


@pytest.mark.parametrize(("wanted", "rows"), [(4, None), (5, None), (100, None), (1, None), (4, 9)])
def test_evaluation_reads_lanes_from_beginning_to_end(wanted, rows):
    order = EvaluationLanes(DOCUMENTS, wanted, unroll=8, rows=rows)
    whole = np.concatenate([a + np.arange(n) for a, n in zip(DOCUMENTS.addresses, LENGTHS, strict=True)])
    steps = [order.ids(step) for step in range(len(order))]
    read = np.concatenate([ids[:, :-1] for ids in steps], axis=1)
    for number, lane in enumerate(read):
        start = number * (238 // order.lanes)
        assert np.array_equal(lane, whole[start : start + len(lane)])
    assert np.array_equal(steps[-1][:, -1], whole[np.arange(order.lanes) * (238 // order.lanes) + order.lane_length])
    assert np.array_equal(order.by_lane(np.concatenate([ids[:, :-1].ravel() for ids in steps])), read)
    assert read.size > 238 - order.lanes if rows is None else read.size == 4 * 3 * 8


# ---- the generator


def conditional(generator: SyntheticText, document: np.ndarray, place: int) -> np.ndarray:
    """The distribution of a token given all before it, written out from the description."""
    config, p = generator.config, np.zeros(generator.config.vocabulary)
    if place == 0:
        p[1 : 1 + config.topics] = 1 / config.topics
    elif place == 1:
        p[1 + config.topics : 1 + config.topics + config.names] = 1 / config.names
    else:
        p[END] = 1 / (config.document_length - 2)
        body = np.zeros_like(p)
        body[document[1]] = config.recall
        weights = 1 / np.arange(1, config.followers + 1)
        for follower, weight in zip(generator.followers[document[place - 1]], weights / weights.sum(), strict=True):
            body[follower] += config.phrase * weight
        words = generator.by_rank[document[0] - 1]
        frequency = 1 / np.arange(1, len(words) + 1) ** config.zipf
        body[words] += (1 - config.phrase - config.recall) * frequency / frequency.sum()
        p += (1 - p[END]) * body
    return p


def split_documents(generator, numbers, split="train"):
    lengths, tokens, probability = generator.documents(numbers, split)
    cuts = np.cumsum(lengths)[:-1]
    return list(zip(np.split(tokens, cuts), np.split(probability, cuts), strict=True))


def test_the_probabilities_are_the_models_own():
    for tokens, probability in split_documents(GENERATOR, np.arange(6)):
        for place in range(len(tokens)):
            expected = conditional(GENERATOR, tokens, place)
            assert math.isclose(expected.sum(), 1, rel_tol=1e-12)
            assert math.isclose(probability[place], expected[tokens[place]], rel_tol=1e-9)


def test_tokens_are_drawn_with_these_probabilities():
    """After one frequent word in one topic: observed against expected counts."""
    documents = split_documents(GENERATOR, np.arange(4000))
    word, topic = int(GENERATOR.by_rank[0, 0]), 1
    observed, expected = np.zeros(60), np.zeros(60)
    for tokens, _ in documents:
        if tokens[0] != topic:
            continue
        for place in np.flatnonzero(tokens[2:-1] == word) + 3:
            observed[tokens[place]] += 1
            expected += conditional(GENERATOR, tokens, place)
    assert observed.sum() > 3000
    possible = expected > 0
    assert observed[~possible].sum() == 0
    assert expected[possible].min() > 5
    assert stats.chisquare(observed[possible], expected[possible]).pvalue > 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"recall": 0.0, "phrase": 0.8, "followers": 2}, {"zipf": 0.0, "document_length": 9}]
)
def test_the_entropy_rate_is_that_of_the_sample(options):
    generator = SyntheticText(replace(TEXT, **options), seed=7)
    lengths, _, probability = generator.documents(np.arange(6000), "train")
    information = np.add.reduceat(-np.log(probability), np.cumsum(lengths) - lengths)
    residual = information - generator.entropy_rate * lengths
    assert abs(residual.mean()) < 4 * residual.std() / math.sqrt(len(lengths))
    assert residual.std() / math.sqrt(len(lengths)) / lengths.mean() < 0.02  # so the check is sharp


def test_a_document_is_a_function_of_its_number():
    alone = [split_documents(GENERATOR, np.array([number]))[0] for number in (9, 2, 500)]
    together = split_documents(GENERATOR, np.array([9, 2, 500]))
    for (tokens, probability), (other, others) in zip(alone, together, strict=True):
        assert np.array_equal(tokens, other)
        assert np.array_equal(probability, others)
        assert tokens[-1] == END
        assert (tokens[:-1] != END).all()
    held_out = split_documents(GENERATOR, np.array([9]), "validation")[0][0]
    assert not np.array_equal(held_out, alone[0][0])


def test_impossible_generators_are_refused():
    with pytest.raises(UserError, match="vocabulary=10"):
        SyntheticText(replace(TEXT, vocabulary=10), seed=0)


# ---- the loss


@pytest.mark.parametrize("chunk", [1 << 19, 100])
@pytest.mark.parametrize("kind", ["cross_entropy", "kl"])
@pytest.mark.parametrize("shape", ["rows", "one", "two"])
def test_the_written_gradient_is_autograds(monkeypatch, chunk, kind, shape):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 30, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(30, (4, 5)), torch.rand(4, 5, dtype=torch.float64)
    values = [
        torch.randn(30 if shape == "one" else (4, 5, 30), dtype=torch.float64) for _ in range(1 + (shape == "two"))
    ]
    options = LossOptions(0.7, 0.4, kind)
    sums = multiclass(logits, targets, weights=weights, options=options, soft=Soft(tuple(values)))
    mean = torch.stack([value.expand(4, 5, 30).softmax(-1) for value in values]).mean(0)
    log_p = logits.log_softmax(-1)
    label = -(log_p.gather(-1, targets[..., None])[..., 0] * weights).sum()
    soft = -((log_p * mean).sum(-1) * weights).sum()
    if kind == "kl":
        soft = soft + ((mean * mean.log()).sum(-1) * weights).sum()
    torch.testing.assert_close(sums.label, label)
    torch.testing.assert_close(sums.distillation, soft)
    (3 * sums.total).backward()
    (expected,) = torch.autograd.grad(3 * (0.7 * label + 0.4 * soft), logits)
    torch.testing.assert_close(logits.grad, expected)


# ---- the task


def test_order_and_batch_are_pure_and_targets_are_the_next_tokens():
    config = make_config("task=lm")
    task, again = LMTask(config), LMTask(config)
    order = task.order(group=0, num_groups=1, examples_per_step=8, seed=1)
    for step in (7, 0, 3):
        batch = task.batch(order.ids(step), "train")
        other = again.batch(again.order(group=0, num_groups=1, examples_per_step=8, seed=1).ids(step), "train")
        assert torch.equal(batch.inputs[0], other.inputs[0])
        assert torch.equal(batch.inputs[0][:, 1:], batch.targets[:, :-1])
        assert batch.bayes.shape == batch.targets.shape
        following = task.batch(order.ids(step + 1), "train")
        assert torch.equal(following.inputs[0][:, 0], batch.targets[:, -1])


def test_groups_that_share_documents_order_them_differently_and_parts_are_disjoint():
    same, apart = (LMTask(make_config("task=lm", "num_groups=2", f"data.partition={p}")) for p in ("same", "disjoint"))
    for task, together in ((same, 320), (apart, 640)):
        orders = [task.order(group=g, num_groups=2, examples_per_step=8, seed=g) for g in range(2)]
        first, second = ({int(i) for step in range(40) for i in order.ids(step)[:, :-1].ravel()} for order in orders)
        assert not np.array_equal(orders[0].ids(0), orders[1].ids(0))
        assert (len(first & second) == 0) is (task is apart)
        assert len(first | second) // 32 == task.distinct_rows(num_groups=2, examples=320) == together
    assert same.distinct_rows(num_groups=2, examples=160) < 320


@pytest.fixture
def store(tmp_path):
    """A token store of 60 documents of text-like tokens, 12 of them for validation."""
    documents = [tokens for tokens, _ in split_documents(GENERATOR, np.arange(72))]
    return write_token_store(
        tmp_path / "store",
        documents={"train": documents[:60], "validation": documents[60:]},
        vocabulary=60,
        special={"document_end": END},
        num_bytes={"train": 9000, "validation": 1700},
    )


def prepared(store, *overrides: str) -> LMTask:
    return LMTask(make_config("task=lm", "data=prepared", f"data.path='{store.path}'", "task.unroll=8", *overrides))


def addresses(documents: Documents) -> set[int]:
    return set(documents.addresses.tolist())


def test_a_store_is_read_as_it_was_written(store):
    task = prepared(store)
    order = task.order(group=0, num_groups=1, examples_per_step=4, seed=0)
    ids = order.ids(3)
    batch = task.batch(ids, "train")
    assert np.array_equal(batch.targets.numpy(), store.tokens("train")[ids[:, 1:]])
    assert batch.bayes is None
    assert task.num_rows("validation") == (store.num_tokens("validation") - 1) // 8
    torch.testing.assert_close(task.prior().double(), torch.from_numpy(store.unigram()), rtol=1e-6, atol=1e-8)


def test_partitions_and_the_tuning_part_share_no_document(store):
    task = prepared(store, "data.partition=disjoint", "num_groups=2")
    parts = [task.source.documents("train", part=part, parts=2) for part in range(2)]
    assert not addresses(parts[0]) & addresses(parts[1])
    assert sum(part.num_tokens for part in parts) == store.num_tokens("train")
    assert task.num_rows("train") == min((part.num_tokens - 1) // 8 for part in parts)
    moved = prepared(store, "data.partition=disjoint", "num_groups=2", "data.seed=1").source
    assert addresses(moved.documents("train", part=0, parts=2)) != addresses(parts[0])
    tuning = prepared(store, "data.holdout=tuning").source
    held_out, kept = tuning.documents("validation"), tuning.documents("train")
    assert held_out.num_tokens + kept.num_tokens == store.num_tokens("train")
    assert len(held_out.lengths) == 60 // 16  # at most a 16th, however much there is for validation
    assert not addresses(held_out) & addresses(kept)


def test_max_rows_bounds_the_tokens(store):
    task = prepared(store, "data.max_rows=100")
    assert 60 < task.num_rows("train") <= 100


def test_a_store_without_validation_text_is_refused(tmp_path):
    empty = write_token_store(
        tmp_path / "s", documents={"train": [np.ones(99, dtype=np.int64)]}, vocabulary=5, special={}
    )
    with pytest.raises(UserError, match="validation part is shorter"):
        prepared(empty).order(group=0, num_groups=1, examples_per_step=1, seed=0)


def test_metrics_and_results_agree_with_each_other_and_with_torch(store):
    task = prepared(store, "train.evaluate_batch=4")
    torch.manual_seed(0)
    model = task.build_model().eval()
    order = task.evaluation_order("validation", rows=None, batch_size=4)
    metrics, stored, losses_, correct, carry = task.metrics(), [], [], [], None
    with torch.no_grad():
        for step in range(len(order)):
            batch = task.batch(order.ids(step), "validation")
            logits, carry = task.forward(model, batch, carry)
            metrics.update(logits, batch.targets, batch.weights, bayes=None)
            stored.append(task.probabilities(logits, batch).numpy())
            losses_.append(F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none"))
            correct.append(logits.argmax(-1) == batch.targets)
    loss = torch.cat(losses_, dim=1).double()
    own = metrics.result()
    assert own["rows"] == loss.numel() > store.num_tokens("validation") - 1 - 4
    assert math.isclose(own["cross_entropy"], loss.mean().item(), rel_tol=1e-6)
    assert math.isclose(own["top1"], torch.cat(correct, dim=1).double().mean().item(), rel_tol=1e-9)
    bits = loss.mean().item() / math.log(2) * store.num_tokens("validation") / 1700
    assert math.isclose(own["bits_per_byte"], bits, rel_tol=1e-6)
    flat = np.concatenate(stored)
    results = task.results(flat, np.zeros(len(flat)), bayes=None, split="validation")
    assert math.isclose(results["cross_entropy"], own["cross_entropy"], rel_tol=1e-6)
    assert math.isclose(results["perplexity"], math.exp(own["cross_entropy"]), rel_tol=1e-6)
    assert math.isclose(results["bits_per_byte"], bits, rel_tol=1e-6)
    lane_means = loss.mean(dim=1).numpy()
    low, high = stats.t.interval(0.95, 3, lane_means.mean(), stats.sem(lane_means))
    assert np.allclose(results["cross_entropy_interval"], [low, high], rtol=1e-6)


# ---- runs

QUICK = ("task=lm", "task.unroll=8", "train.max_examples=160", "train.log_every=16", "train.evaluate_every=0",
         "train.checkpoint_every=24", "algorithm.burn_in=24", "exchange.interval=16", "model.hidden=[12,10]",
         "optim.clip_norm=null")  # fmt: skip
SMALL_TRANSFORMER = tuple(word for word in QUICK if not word.startswith("model.hidden"))


def test_codistillation_with_carry_equals_a_plain_loop(train):
    """Students and teachers keep their state; a teacher's goes on over the student's stream when its weights change."""
    torch.set_num_threads(1)
    overrides = (*QUICK, "algorithm=codistill", "num_groups=3", "data.partition=disjoint", "seed=5")
    run, config = train(*overrides), make_config(*overrides)
    task = LMTask(config)
    models, orders, optimizers = [], [], []
    for group in range(3):
        torch.manual_seed(derive(5, "init", group=group))
        models.append(task.build_model())
        seed = derive(5, "order", group=group)
        orders.append(task.order(group=group, num_groups=3, examples_per_step=8, seed=seed))
        optimizers.append(torch.optim.Adam(models[-1].parameters(), lr=config.optim.lr, fused=True))
    teachers, state, heard = {}, dict.fromkeys(range(3)), {}
    for step in range(20):
        if step >= 2 and step % 2 == 0:
            teachers = {group: copy.deepcopy(models[group]).eval() for group in range(3)}
        for group in range(3):
            batch = task.batch(orders[group].ids(step), "train")
            logits, state[group] = models[group](batch.inputs[0], state[group])
            soft = None
            if step >= 3:
                found = []
                for peer in (p for p in range(3) if p != group):
                    with torch.no_grad():
                        values, heard[group, peer] = teachers[peer](batch.inputs[0], heard.get((group, peer)))
                    found.append(values)
                soft = Soft(tuple(found))
            sums = multiclass(logits, batch.targets, weights=batch.weights, options=LossOptions(), soft=soft)
            models[group].zero_grad()
            (sums.total / 64).backward()
        for optimizer in optimizers:
            optimizer.step()
    for group, model in enumerate(models):
        trained = task.build_model()
        load_weights(run, group, step=common_step(run, range(3)), model=trained)
        for name, value in model.state_dict().items():
            assert torch.equal(value, trained.state_dict()[name]), name
    assert run.results["rows"] == 64 * 8


@pytest.mark.slow
def test_the_same_bits_in_one_process_and_in_several(train):
    overrides = [
        *QUICK,
        "algorithm=codistill",
        "workers=4",
        "train.batch=2",
        "model.dropout=0.1",
        "data.partition=disjoint",
    ]
    hashes = []
    for number, launch in enumerate(([], *(["launch=local", f"launch.processes={count}"] for count in (1, 2, 4)))):
        words = [*overrides, "exchange=store", *launch]
        hashes.append(weight_hashes(train(*words, name=str(number))))
    assert all(own == hashes[0] for own in hashes)


def test_an_ensemble_predicts_with_the_mean_probability_of_each_correct_token(train):
    run = train(*QUICK, "algorithm=ensemble", "train.evaluate_batch=4")
    root = run.prediction_root("validation")
    members = np.stack([np.load(root / f"group-{group}.npy") for group in range(2)]).astype(np.float64)
    assert members.shape == (2, 64 * 8)
    expected = -np.log(members.mean(axis=0)).mean()
    assert math.isclose(run.results["metrics"]["cross_entropy"], expected, rel_tol=1e-9)
    bayes = np.load(root / "bayes.npy")
    assert math.isclose(run.results["metrics"]["excess_cross_entropy"], expected + np.log(bayes).mean(), rel_tol=1e-9)
    assert expected < -np.log(members).mean()


def test_the_model_learns_what_lies_before_its_unroll(train):
    """The carried state is worth something: started anew at every batch, the trained model predicts worse."""
    run = train(*QUICK[:2], "train.max_examples=null", "task.synthetic.rows=6400", "train.batch=16", "train.evaluate_every=0",
                "task.synthetic.vocabulary=60", "model.hidden=[64]", "model.embedding_dim=32")  # fmt: skip
    task = LMTask(load(run.config))
    model = task.build_model().eval()
    load_weights(run, 0, step=common_step(run, range(1)), model=model)
    order = task.evaluation_order("validation", rows=None, batch_size=8)
    carried, anew, carry = task.metrics(), task.metrics(), None
    with torch.no_grad():
        for step in range(len(order)):
            batch = task.batch(order.ids(step), "validation")
            logits, carry = task.forward(model, batch, carry)
            carried.update(logits, batch.targets, batch.weights, bayes=batch.bayes)
            anew.update(task.forward(model, batch, None)[0], batch.targets, batch.weights, bayes=batch.bayes)
    metrics = run.results["metrics"]
    assert math.isclose(carried.result()["cross_entropy"], metrics["cross_entropy"], rel_tol=1e-6)
    assert math.isclose(carried.result()["excess_cross_entropy"], metrics["excess_cross_entropy"], rel_tol=1e-5)
    assert 0 < metrics["excess_cross_entropy"] < anew.result()["excess_cross_entropy"] - 0.05


def test_a_prepared_store_is_trained_on_and_evaluated(train, store, tmp_path):
    quick = [word for word in QUICK if not word.startswith("train.max_examples")]
    run = train(*quick, "data=prepared", f"data.path='{store.path}'", "train.max_examples=80", "train.evaluate_batch=4")
    metrics = run.results["metrics"]
    assert metrics["bits_per_byte"] > 0
    assert "excess_cross_entropy" not in metrics
    again = evaluate(run, split="validation", data=store.path, output=tmp_path / "p.csv")
    assert again["cross_entropy"] == metrics["cross_entropy"]
    table = np.genfromtxt(tmp_path / "p.csv", delimiter=",", names=True)
    assert math.isclose(-np.log(table["probability_of_label"]).mean(), metrics["cross_entropy"], rel_tol=1e-6)
    assert set(table["label"].astype(int)) <= set(range(60))
    trained = evaluate(run, split="train")
    assert trained["rows"] > store.num_tokens("train") - 1 - 4
    assert trained["cross_entropy_interval"][0] < trained["cross_entropy"] < trained["cross_entropy_interval"][1]


def test_churn_of_what_is_stored_for_a_language_model():
    first, second, targets = np.array([0.5, 0.25, 0.1]), np.array([0.25, 0.25, 0.3]), np.array([7, 0, 3])
    result = churn([first, second], targets=targets)
    assert math.isclose(result.metrics["mean_abs_difference"], (0.25 + 0 + 0.2) / 3)
    assert math.isclose(result.metrics["cross_entropy"], -(np.log(first).mean() + np.log(second).mean()) / 2)
    assert result.metrics["calibration_error"] is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=criteo", "model=lstm"], "model=lstm cannot learn task=criteo. Choose model=mlp"),
        (["task=lm", "model=mlp"], "Choose model=lstm or model=transformer"),
        (["task=lm", "algorithm=codistill", "exchange.lookahead=2"], "exchange.lookahead=1"),
        (["task=lm", "model=transformer", "model.width=30", "model.heads=4"], "Try model.width="),
        (["task=lm", "task.unroll=0"], "task.unroll=0"),
        (["task=lm", "data=prepared"], "odist prepare text"),
    ],
)
def test_what_validate_refuses(overrides, said):
    with pytest.raises(UserError, match=said):
        validate(make_config(*overrides))


def test_groups_read_identical_sequences_on_request_and_are_counted_once(store):
    for data in ([], ["data=prepared", f"data.path={store.path}"]):
        batches, distinct = {}, {}
        for partition in ("identical", "same"):
            task = LMTask(make_config("task=lm", "num_groups=2", f"data.partition={partition}", *data))
            seeds = [order_seed(0, group=group, partition=partition) for group in range(2)]
            orders = [task.order(group=g, num_groups=2, examples_per_step=4, seed=seeds[g]) for g in range(2)]
            batches[partition] = [order.ids(3) for order in orders]
            distinct[partition] = task.distinct_rows(num_groups=2, examples=32)
        assert np.array_equal(*batches["identical"])
        assert not np.array_equal(*batches["same"])
        assert distinct["identical"] < distinct["same"]
