"""Where a lock-step run of several processes goes on when its exchange has lost what its groups still need.

Every group continues from its own newest checkpoint and publishes again what the checkpoint holds of it, which covers the
few intervals that groups are apart while they train. Killed between two groups' checkpoints they are further apart, and
then only the store has the snapshots in between; without them all go back to the newest step that all have saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import fsspec

from odist.config.schema import Config
from odist.engine import checkpoint
from odist.errors import UserError
from odist.exchange.background import Background
from odist.exchange.shelf import Shelf
from odist.exchange.store import options_for
from odist.optim import Clock
from odist.run.folder import Run

SECONDS_TO_LOOK = 60.0  # into the store; groups will find out by themselves what it does not answer


def mend(run: Run, config: Config, *, say: Callable[[str], None]) -> None:
    """Make sure that all groups of a stopped run can go on; `say` is told if they go back for it.

    UserError, with the cure, if they cannot: no step was saved by all of them. Nothing is done to a run that needs nothing.
    """
    groups = range(config.num_groups)
    saved = {group: max(run.checkpoint_steps(group), default=0) for group in groups}
    if (
        config.algorithm.teacher != "peers"
        or config.exchange.timing != "lockstep"
        or not any(saved.values())
        or not run.horizon
    ):
        return
    over = {group for group in groups if run.group_results(group).is_file()}
    asked = [(peer, step) for group in groups if group not in over for peer in groups if peer != group
             for step in _wanted(run, config, after=saved[group], until=saved[peer])
             if peer in over or step not in _held(run, config, at=saved[peer])]  # fmt: skip
    lost = _not_in_store(run, config, asked) if asked else []
    if not lost:
        return
    if all(step in _held(run, config, at=saved[peer]) for peer, step in lost):
        for peer, _ in lost:
            run.group_results(peer).unlink(missing_ok=True)  # so that it is started, and publishes them
        return
    url, steps = config.exchange.url or run.path / "exchange", sorted({step for _, step in lost})
    what = f"{url}: the weights of step {steps[0]}{f' to {steps[-1]}' if len(steps) > 1 else ''} are no longer there"
    common = checkpoint.common_step(run, range(config.num_groups))
    if common is None:
        raise UserError(f"{what}, and the groups, saved after steps {', '.join(map(str, saved.values()))}, cannot go on without "
                        f"them. Bring them back, or remove {run.path / 'checkpoints'}: the same command then trains from the "
                        "beginning.")  # fmt: skip
    for group in groups:
        checkpoint.drop_newer(run, group, than=common)
        run.group_results(group).unlink(missing_ok=True)
    say(f"{what}; all groups go back to step {common}.")


def _interval(run: Run, config: Config) -> int:
    horizon = run.horizon
    return max(1, Clock(horizon["examples_per_step"], horizon["num_steps"]).steps(config.exchange.interval))


def _wanted(run: Run, config: Config, *, after: int, until: int) -> Iterator[int]:
    """Steps up to `until` whose snapshots a group that goes on after step `after` asks a peer for."""
    interval, num_steps = _interval(run, config), run.horizon["num_steps"]
    burn_in = Clock(run.horizon["examples_per_step"], num_steps).steps(config.algorithm.burn_in)
    for step in range(interval, until + 1, interval):
        heard = step + config.exchange.lag * interval  # where it is asked for
        if heard >= after and heard < num_steps and heard + interval > burn_in:
            yield step


def _held(run: Run, config: Config, *, at: int) -> list[int]:
    """Steps whose snapshots a group publishes again when it goes on after step `at`: see `Peers.state_dict`."""
    interval = _interval(run, config)
    return [at // interval * interval - back * interval for back in range(2 * config.exchange.lag + 1)]


def _not_in_store(run: Run, config: Config, asked: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Which of these groups' snapshots cannot be read; none if the store does not answer."""

    def look() -> list[tuple[int, int]]:
        url = config.exchange.url or str(run.path / "exchange")
        fs, root = fsspec.core.url_to_fs(url, **options_for(url))
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        shelf = Shelf(fs, root, run=run.env.get("run_id") or run.name, local="file" in protocols)
        return [(group, step) for group, step in asked
                if shelf.newest([m for m in shelf.manifests(group) if m.step == step]) is None]  # fmt: skip

    looking = Background("look")
    answer = looking.submit(look)
    looking.close()
    try:
        return answer.result(timeout=SECONDS_TO_LOOK)
    except Exception:
        return []  # a store that is away: the groups wait for it and say so
