"""A classifier of rows that are made here, in plain PyTorch; plain_torch.py is the same script with a peer.

`diff plain_torch_before.py plain_torch.py` shows what codistillation takes. Two terminals, in any order:

    python examples/plain_torch.py --group 0
    python examples/plain_torch.py --group 1
"""

import argparse
import json

import torch
from plain_rows import make_rows
from torch import nn

import odist

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--url", default="out/pair", help="folder or URL that both terminals reach")
parser.add_argument("--group", type=int, default=0)
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(10 * args.seed + args.group)
x, y = make_rows(4096, seed=1)
x_new, y_new = make_rows(8192, seed=2)
model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
criterion = nn.CrossEntropyLoss()
losses = []
peer = odist.Codistiller(model, url=args.url, group=args.group, peers=[1 - args.group], every=50, burn_in=200, poll=0.1)

for step in range(1, args.steps + 1):
    rows = torch.randint(len(x), (64,))
    logits = model(x[rows])
    loss = criterion(logits, y[rows]) + peer.loss(logits, x[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    peer.step()
    if step % 200 == 0 or step == args.steps:
        with torch.no_grad():
            losses.append(float(criterion(model(x_new), y_new)))
        print(f"step {step}: validation {losses[-1]:.4f} {peer.log()}", flush=True)
print(json.dumps({"validation_loss": losses[-1], "lowest_validation_loss": min(losses), **peer.log()}))
