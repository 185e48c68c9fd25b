"""plain_torch.py under accelerate, with gradient accumulation and mixed precision where `accelerate launch` says so.

    accelerate launch examples/accelerate_loop.py --group 0 & accelerate launch examples/accelerate_loop.py --group 1

Needs `pip install 'odist[accelerate]'`.
"""

import argparse
import json

import torch
from accelerate import Accelerator
from plain_rows import make_rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import odist

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--url", default="out/accelerate", help="folder or URL that all groups reach")
parser.add_argument("--group", type=int, default=0)
args = parser.parse_args()

accelerator = Accelerator(gradient_accumulation_steps=2)
torch.manual_seed(10 * args.seed + args.group)
model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 10))
model, optimizer, batches = accelerator.prepare(
    model,
    torch.optim.AdamW(model.parameters(), lr=1e-3),
    DataLoader(TensorDataset(*make_rows(4096, seed=1)), batch_size=32, shuffle=True),
)
x_new, y_new = (part.to(accelerator.device) for part in make_rows(8192, seed=2))
criterion = nn.CrossEntropyLoss()
losses = []
peer = odist.Codistiller(model, url=args.url, group=args.group, peers=[1 - args.group], every=10, burn_in=50, poll=0.1)
accelerator.register_for_checkpointing(peer)  # save_state and load_state know the teachers

while peer.steps < args.steps:
    for x, y in batches:
        with accelerator.accumulate(model), accelerator.autocast():
            logits = model(x)
            loss = criterion(logits, y) + peer.loss(logits, x)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        peer.step()
        if peer.steps % 100 == 0 or peer.steps == args.steps:
            with torch.no_grad():
                losses.append(float(criterion(model(x_new), y_new)))
            accelerator.print(f"step {peer.steps}: validation {losses[-1]:.4f} {peer.log()}", flush=True)
        if peer.steps == args.steps:
            break
accelerator.print(json.dumps({"validation_loss": losses[-1], "lowest_validation_loss": min(losses), **peer.log()}))
peer.close()
