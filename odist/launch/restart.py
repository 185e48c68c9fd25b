"""Where a lock-step run of several processes goes on when its exchange has lost what its groups still need.

Every group continues from its own newest checkpoint and publishes again the snapshots that the checkpoint holds, which
covers the few intervals that groups are apart while they train. If the run was killed between two groups' checkpoints,
they are further apart, and only the store has the snapshots in between; without these all groups go back to the newest
step that all have saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from odist.config.options import options_of
from odist.config.schema import Config
from odist.engine import checkpoint
from odist.errors import UserError
from odist.exchange import StoreOptions
from odist.exchange.background import Background
from odist.exchange.shelf import Shelf
from odist.exchange.topology import Topology
from odist.optim import Clock
from odist.run.folder import Run
from odist.stores import is_local, open_store
from odist.teachers import PeersOptions, peers_options

SECONDS_TO_LOOK = 60.0  # into the store; groups will find out by themselves what it does not answer


def mend(run: Run, config: Config, *, say: Callable[[str], None]) -> None:
    """Make sure that all groups of a stopped run can go on; a run that needs nothing is left as it is.

    say: called with a sentence if groups go back to an older step
    Raises UserError, with the cure, if they cannot go on because there is no step that all of them have saved.
    """
    peers, store = peers_options(config), options_of(config, "exchange")
    if config.launch.group is not None:
        return  # what the others have saved is known to their own jobs
    groups = range(config.num_groups)
    saved = {group: max(run.checkpoint_steps(group), default=0) for group in groups}
    if peers is None or peers.timing != "lockstep" or not isinstance(store, StoreOptions):
        return
    if not any(saved.values()) or not run.horizon:
        return
    asking = Asking(peers, Clock(run.horizon["examples_per_step"], run.horizon["num_steps"]))
    over = {group for group in groups if run.group_results(group).is_file()}
    topology = Topology(peers.topology, peers.degree, num_groups=config.num_groups, seed=config.seed)
    asked = [
        (peer, step)
        for group in groups
        if group not in over
        for step, heard in asking.wanted(after=saved[group], until=max(saved.values()))
        for peer in topology.peers(group, step=heard)
        if step <= saved[peer] and (peer in over or step not in asking.held(at=saved[peer]))
    ]
    url = store.url or str(run.path / "exchange")
    lost = _not_in_store(run, asked, url=url) if asked else []
    if not lost:
        return
    if all(step in asking.held(at=saved[peer]) for peer, step in lost):
        for peer, _ in lost:
            run.group_results(peer).unlink(missing_ok=True)  # so that it is started, and publishes them
        return
    steps = sorted({step for _, step in lost})
    what = f"{url}: the weights of step {steps[0]}{f' to {steps[-1]}' if len(steps) > 1 else ''} are no longer there"
    common = checkpoint.common_step(run, range(config.num_groups))
    if common is None:
        raise UserError(
            f"{what}, and the groups, saved after steps {', '.join(map(str, saved.values()))}, cannot go on without "
            f"them. Bring them back, or remove {run.path / 'checkpoints'}: the same command then trains from the beginning."
        )
    for group in groups:
        checkpoint.drop_newer(run, group, than=common)
        run.group_results(group).unlink(missing_ok=True)
    say(f"{what}; all groups go back to step {common}.")


@dataclass(frozen=True)
class Asking:
    """Which snapshots the groups of a lock-step run ask each other for."""

    peers: PeersOptions
    clock: Clock

    @property
    def interval(self) -> int:
        return max(1, self.clock.steps(self.peers.interval))

    def wanted(self, *, after: int, until: int) -> Iterator[tuple[int, int]]:
        """Steps up to `until` whose snapshots a group that goes on after step `after` asks for, and where it asks for them."""
        interval, burn_in = self.interval, self.clock.steps(self.peers.burn_in)
        for step in range(interval, until + 1, interval):
            heard = step + self.peers.lag * interval
            if heard >= after and heard < self.clock.num_steps and heard + interval > burn_in:
                yield step, heard

    def held(self, *, at: int) -> list[int]:
        """Steps whose snapshots a group publishes again when it goes on after step `at`: see `Peers.state_dict`."""
        interval = self.interval
        return [at // interval * interval - back * interval for back in range(2 * self.peers.lag + 1)]


def _not_in_store(run: Run, asked: list[tuple[int, int]], *, url: str) -> list[tuple[int, int]]:
    """Which of these groups' snapshots cannot be read; none if the store does not answer."""

    def look() -> list[tuple[int, int]]:
        fs, root = open_store(url)
        shelf = Shelf(fs, root, run=run.env.get("run_id") or run.name, local=is_local(fs))
        return [
            (group, step)
            for group, step in asked
            if shelf.newest([m for m in shelf.manifests(group) if m.step == step]) is None
        ]

    looking = Background("look")
    answer = looking.submit(look)
    looking.close()
    try:
        return answer.result(timeout=SECONDS_TO_LOOK)
    except Exception:
        return []  # a store that is away: the groups wait for it and say so
