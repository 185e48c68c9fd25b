"""plain_torch.py with several processes a group, by DistributedDataParallel: two groups of two on one machine are

torchrun --standalone --nproc-per-node 2 examples/ddp.py --group 0 &
torchrun --standalone --nproc-per-node 2 examples/ddp.py --group 1
"""

import argparse

import torch
import torch.distributed as dist
from plain_rows import make_rows
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import odist

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--url", default="out/ddp", help="folder or URL that all groups reach")
parser.add_argument("--group", type=int, default=0)
args = parser.parse_args()

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
torch.manual_seed(args.group)  # all processes of a group start from the same weights
x, y = make_rows(4096, seed=1)
x_new, y_new = make_rows(8192, seed=2)
model = DistributedDataParallel(nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 10)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
criterion = nn.CrossEntropyLoss()
generator = torch.Generator().manual_seed(100 * args.group + rank)

with odist.Codistiller(model, url=args.url, group=args.group, peers=[1 - args.group], every=10) as peer:
    for step in range(1, args.steps + 1):
        rows = torch.randint(len(x), (64 // size,), generator=generator)
        logits = model(x[rows])
        loss = criterion(logits, y[rows]) + peer.loss(logits, x[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        peer.step()
        if (step % 200 == 0 or step == args.steps) and rank == 0:
            with torch.no_grad():
                validation = criterion(model.module(x_new), y_new)
            print(f"step {step}: validation {validation:.4f} {peer.log()}", flush=True)
dist.destroy_process_group()
