"""A small GPT-2 on bytes of Python's own library, trained by transformers' Trainer, alone or with a peer.

Few bytes read several times, where two trainings learn different things by heart. No download. What a peer gives here over
five seeds: reports/examples, by compare.py.

    python examples/transformers_trainer.py                                           # one model
    python examples/transformers_trainer.py --url out/lm --group 0 & python examples/transformers_trainer.py --url out/lm --group 1

Needs `pip install 'odist[transformers,accelerate]'`.
"""

import argparse
import contextlib
import json
import sysconfig
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import odist
from odist.integrations.transformers import TaughtTrainerMixin

LENGTH = 64  # bytes of a row


class TaughtTrainer(TaughtTrainerMixin, Trainer):
    """The Trainer with a teacher's loss."""


def rows(*modules: str, limit: int) -> list[dict[str, torch.Tensor]]:
    """Rows of LENGTH bytes of the source of these modules."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = b"".join((folder / module).read_bytes() for module in modules)[:limit]
    whole = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return [{"input_ids": row, "labels": row} for row in whole[: len(whole) // LENGTH * LENGTH].view(-1, LENGTH)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", help="folder or URL of the peers; without it one model is trained")
    parser.add_argument("--group", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--bytes", type=int, default=12_800)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, validation = rows("argparse.py", limit=given.bytes), rows("optparse.py", limit=12_800)
    set_seed(10 * given.seed + given.group)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=given.steps,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=64,
            learning_rate=3e-3,
            warmup_steps=20,
            logging_steps=100,
            eval_strategy="steps",
            eval_steps=50,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=10 * given.seed + given.group,
        )
        settings = {"model": model, "args": args, "train_dataset": train, "eval_dataset": validation}
        if given.url is None:
            peer, trainer = None, Trainer(**settings)
        else:
            peer = odist.Codistiller(
                model, url=given.url, group=given.group, peers=[1 - given.group], every=10, burn_in=given.steps // 10
            )
            trainer = TaughtTrainer(**settings, peer=stack.enter_context(peer))
        trainer.train()
        teachers = {} if peer is None else peer.log()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    print(json.dumps({"validation_loss": losses[-1], "lowest_validation_loss": min(losses), **teachers}))


if __name__ == "__main__":
    main()
