"""Codistillation in a training loop of one's own: two jobs that share nothing but a folder or a bucket teach each other.

peer = odist.Codistiller(model, url="s3://bucket/run", group=0, peers=[1], every=50, burn_in=3000)
loss = criterion(logits, y) + peer.loss(logits, x)      # 0 until burn-in and while no peer is there
peer.step()                                             # publishes and refreshes in the background
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Unpack

import torch
import torch.distributed as dist
from torch import nn

from odist.errors import UserError
from odist.exchange.base import Schedule, Weights, fingerprint
from odist.exchange.store import HEADER_BYTES, StoreExchange
from odist.exchange.topology import Topology
from odist.mesh import Axis, Mesh
from odist.own_loop.taught import Taught, TeachingOptions, calling, check_counts, checked
from odist.stores import check_url
from odist.teachers import TOPOLOGIES
from odist.teachers.peers import Peers
from odist.wrapping import full_state, is_sharded, unwrapped

ANY_STEP = 10**10 - 1  # the last that a snapshot's name has room for: nobody knows how long the job will be


class Codistiller(Taught):
    """One group of a codistillation: publishes a model's weights, and hears its peers' predictions.

    model: what is trained, before or after DistributedDataParallel, FSDP2 or torch.compile
    url: folder or fsspec URL that all groups reach; group: this one's number
    peers: numbers of the groups that teach it; or num_groups, with topology and degree: all others, the next ones of a
        ring, or some drawn anew at every reload
    every: optimiser steps between two publications, and between two reloads of the teachers
    build_peer: group -> a model like that group's, where it is another network or the model cannot be copied
    run: name that the groups share; snapshots under another name in the same place are not believed
    seed: of the draw of peers; poll: seconds between two looks into the store; keep: own snapshots kept there
    process_group: the processes that train this group's model; None: all that torch.distributed knows
    teaching: burn_in, ramp, weight, predicts, loss, average, temperature, teacher_precision and forward, as
        `odist.own_loop.taught.TeachingOptions` says

    A step waits for no store and no peer. A peer that is slow, dead, damaged, foreign or not finite costs a staler
    teacher or none, never an error; `log` says so. Of several processes all make it and call `step`, and swap teachers at
    the same step; the first publishes. Source: Anil et al. 2018, Algorithm 1 and section 2.1.
    """

    teacher: Peers

    def __init__(
        self,
        model: nn.Module,
        *,
        url: str,
        group: int,
        peers: Sequence[int] | None = None,
        num_groups: int | None = None,
        topology: str = "all",
        degree: int = 1,
        every: int = 50,
        build_peer: Callable[[int], nn.Module] | None = None,
        run: str = "codistillation",
        seed: int = 0,
        poll: float = 1.0,
        keep: int = 3,
        process_group: dist.ProcessGroup | None = None,
        **teaching: Unpack[TeachingOptions],
    ) -> None:
        options = checked(teaching, model)
        check_url(url, key="url")
        check_counts(0, group=group)
        check_counts(1, every=every, keep=keep)
        if poll <= 0:
            raise UserError(f"poll={poll:g}: give seconds, more than 0.")
        ever, peers_at = _peers(group, peers, num_groups=num_groups, topology=topology, degree=degree, seed=seed)
        self.model = model
        mesh = _mesh(process_group)
        build = _builder(model, build_peer)
        self.exchange = _open(
            model,
            build,
            group=group,
            peers=ever,
            url=url,
            run=run,
            mesh=mesh,
            alike=build_peer is None,
            poll=poll,
            keep=keep,
        )
        teacher = Peers(
            calling(options["forward"]),
            student=model,
            build_peer=build,
            relative_cost=lambda peer: 1.0,
            exchange=self.exchange,
            group=group,
            peers=peers_at,
            schedule=Schedule(interval=every, lockstep=False),
            burn_in=options["burn_in"],
            ramp=options["ramp"],
            batches=lambda step: [],
            lookahead=1,
            num_steps=ANY_STEP,
            mesh=mesh,
            precision=options["teacher_precision"],
        )
        super().__init__(teacher, options)

    def step(self) -> None:
        """Count an optimiser step; publish the weights and take newer teachers where that is due.

        To be called after each optimiser step, not after every batch that is accumulated, by all processes of the group.
        """
        super().step()
        self.teacher.publish(self.steps, lambda: self.model)
        self.teacher.refresh(self.steps)

    def log(self) -> dict[str, Any]:
        """The teachers in use, how old they are, and what went wrong since the last call.

        num_teachers: in use; teacher_swaps: how often newer weights were taken
        teacher_age_steps, teacher_age_seconds: of the oldest, None without one; in steps below 0 for a peer that is ahead
        Where there is something to say: teacher_stale (peers that have been silent), teacher_ignored (predictions that were
        not finite or of another shape), and the failures of the exchange with the last reason, as in a run's log.
        """
        said = {name: value for name, value in self.teacher.log().items() if name != "swaps"}
        return {"num_teachers": len(self.teacher.snapshots), "teacher_swaps": self.teacher.num_swaps, **said}

    def close(self) -> None:
        """Finish what is being written, and look for peers no more."""
        self.exchange.close()

    def __enter__(self) -> Codistiller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _peers(
    group: int, peers: Iterable[int] | None, *, num_groups: int | None, topology: str, degree: int, seed: int
) -> tuple[list[int], Callable[[int], Sequence[int]]]:
    """The groups that ever teach `group`, and those that do from a reload on."""
    if (peers is None) == (num_groups is None):
        raise UserError("name the groups that teach this one: either peers=[1], or num_groups=2 for all of them.")
    if peers is not None:
        known = sorted(set(peers))
        if not known or group in known or known[0] < 0:
            raise UserError(f"peers={known}: give the numbers of other groups than group={group}, at least one.")
        return known, lambda step: known
    assert num_groups is not None
    if topology not in TOPOLOGIES:
        raise UserError(f"topology={topology!r}: choose {', '.join(map(repr, TOPOLOGIES))}.")
    if not 0 <= group < num_groups or num_groups < 2 or not 1 <= degree < num_groups:
        raise UserError(
            f"group={group}, num_groups={num_groups}, degree={degree}: groups are counted from 0, there are two or more, and "
            "each has fewer peers than there are groups."
        )
    drawn = Topology(topology, degree, num_groups=num_groups, seed=seed)
    return list(drawn.ever(group)), lambda step: drawn.peers(group, step=step)


def _mesh(process_group: dist.ProcessGroup | None) -> Mesh:
    """The processes that train one model; they talk by a group of their own, on the host and beside the gradients."""
    if not dist.is_available() or not dist.is_initialized():
        return Mesh()
    ranks = dist.get_process_group_ranks(dist.group.WORLD if process_group is None else process_group)
    if len(ranks) == 1:
        return Mesh()
    own = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return Mesh(replica=Axis(ranks.index(dist.get_rank()), len(ranks)), workers=len(ranks), process_group=own)


def _builder(model: nn.Module, build_peer: Callable[[int], nn.Module] | None) -> Callable[[int], nn.Module]:
    """Makes the model that holds a peer's weights, on the device of the student; random numbers stay as they were."""
    inner = unwrapped(model)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UserError(
            "the model is inside FullyShardedDataParallel, which keeps no tensor by its name. Use fully_shard (FSDP2)."
        )
    if build_peer is None:
        if is_sharded(inner):
            raise UserError(
                "a sharded model cannot be copied for its teachers. Give build_peer=lambda group: ..., which makes the "
                "network anew, sharded or not."
            )
        return lambda peer: copy.deepcopy(inner)

    def build(peer: int) -> nn.Module:
        with torch.random.fork_rng():
            made = build_peer(peer)
        device = next((parameter.device for parameter in inner.parameters()), None)
        return made if device is None or is_sharded(made) else made.to(device)

    return build


def _open(
    model: nn.Module,
    build: Callable[[int], nn.Module],
    *,
    group: int,
    peers: Sequence[int],
    url: str,
    run: str,
    mesh: Mesh,
    alike: bool,
    poll: float,
    keep: int,
) -> StoreExchange:
    """This group's end of the exchange, which believes only weights of the peers' networks; UserError if none can be made."""
    own = full_state(model)
    weights: dict[int, Weights] = {group: own}
    for peer in peers:
        try:
            weights[peer] = own if alike and len(weights) > 1 else full_state(build(peer))
        except UserError:
            raise
        except Exception as error:  # now, and not at the first swap hours later
            how = "copied" if alike else "made by build_peer"
            raise UserError(
                f"the model of peer {peer} cannot be {how}: {type(error).__name__}: {error}. Give build_peer=lambda "
                "group: ..., which makes the network."
            ) from error
    return StoreExchange(
        group,
        peers=peers,
        url=url,
        run=run,
        models={one: fingerprint(known) for one, known in weights.items()} if mesh.is_writer else None,
        largest={
            one: sum(tensor.nbytes + HEADER_BYTES for tensor in known.values()) + HEADER_BYTES
            for one, known in weights.items()
        },
        num_steps=ANY_STEP,
        keep=keep,
        poll=poll if mesh.is_writer else None,
        read_only=not mesh.is_writer,
    )
