"""Starts the processes of a run's groups on this machine, attends to them and restarts crashed groups.

Groups are independent of one another except for the exchange; each is a few processes that find each other through a
file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from odist.config.schema import Config
from odist.errors import GAVE_UP, CannotWrite, Damaged, Diverged, Interrupted, LostWorkers, OdistError, UserError
from odist.exchange import in_step
from odist.launch import restart
from odist.launch.watch import Pulse, Watch
from odist.run.folder import Run
from odist.teachers import peers_options

SECONDS_TO_SAVE = 120.0  # for all processes after a signal, before they are killed
SECONDS_TO_SAVE_IF_HUNG = 20.0  # for those of a group that showed no sign of life; a stopped one may still save
SECONDS_TO_LEAVE = 5.0  # for processes whose group has lost one, which cannot save any more
ENDINGS: dict[int, type[OdistError]] = {
    UserError.exit_code: UserError,
    Diverged.exit_code: Diverged,
    LostWorkers.exit_code: LostWorkers,
    GAVE_UP: OdistError,
}
NAMES = {kind.__name__: kind for kind in (*ENDINGS.values(), Damaged, CannotWrite)}


@dataclass
class Group:
    """The processes of one group.

    attempt: counts their starts; over: none will be started again; lost: how it ended, if badly and for good
    pulse: its signs of life since the last start
    """

    index: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    attempt: int = 0
    over: bool = False
    lost: OdistError | None = None
    pulse: Pulse | None = None


def train(run: Run, config: Config, *, stop: Callable[[], bool]) -> None:
    """Train all groups of a run to their end, `launch.processes` processes each.

    Raises Interrupted (all saved), Diverged, LostWorkers (saved; a group was killed or stayed silent), UserError, and
    OdistError for a group that crashed more than `launch.restarts` times. Under freshest timing a lost group is reported
    only when the others have finished, by an error with `lost_groups`.
    """
    (run.path / "logs").mkdir(exist_ok=True)
    watch = Watch(run, config)
    restart.mend(run, config, say=watch.say)
    groups = [Group(index) for index in config.trained_groups]
    units = [groups] if in_step(config) else [[group] for group in groups]  # that start and end together
    run.set_status(state="running", started=time.time())
    try:
        for group in groups:
            _start(run, config, group)
        while not all(group.over for group in groups):
            time.sleep(0.1)
            watch.look()
            if stop():
                _end(groups)
                raise Interrupted("saved; the same command continues it.")
            for unit in units:
                _attend(run, config, unit, watch=watch)
            for group in groups:
                _feel(run, config, group, watch=watch)
    except KeyboardInterrupt:
        _end(groups, patience=0.0)  # a second Ctrl-C: at once, unsaved
        raise
    finally:
        _end(groups)
        with contextlib.suppress(CannotWrite):  # the user should see what ended the groups
            watch.look()
            watch.close()
        for path in (run.path / "logs").glob(".group-*.rendezvous"):  # a killed command's too: its processes are gone
            path.unlink(missing_ok=True)
    lost = {group.index: group.lost for group in groups if group.lost is not None}
    if lost:
        raise sum_up(lost, sound=len(groups) - len(lost))


def sum_up(lost: dict[int, OdistError], *, sound: int) -> OdistError:
    """The error with which a run ends some of whose groups were lost."""
    text = "\n".join(map(str, lost.values()))
    if not sound:
        return type(next(iter(lost.values())))(text)
    diverged = all(isinstance(error, Diverged) for error in lost.values())
    found = (Diverged if diverged else LostWorkers)(
        f"{text}\nThe other groups are trained and saved; results.json and the predictions are theirs alone."
    )
    found.lost_groups = tuple(lost)
    return found


def _start(run: Run, config: Config, group: Group) -> None:
    first = not in_step(config) or group.index == config.trained_groups[0]
    rendezvous = _rendezvous(run, config.trained_groups[0] if in_step(config) else group.index, group.attempt)
    if first:
        rendezvous.unlink(missing_ok=True)
    group.attempt += 1
    group.processes = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.launch.threads)}
    if any(name == "lo" for _, name in socket.if_nameindex()):
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: needs no name and no network
    for replica in range(config.launch.processes):
        command = [sys.executable, "-m", "odist.launch.worker", str(run.path), str(group.index), str(replica)]
        with open(_log(run, group.index, replica), "ab") as log:
            # A session of its own: Ctrl-C reaches the parent alone, which then tells each process once.
            process = subprocess.Popen(
                [*command, str(rendezvous), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        group.processes.append(process)
    group.pulse = Pulse(run.beat_path(group.index), patience=config.launch.patience)


def _rendezvous(run: Run, group: int, attempt: int) -> Path:
    return run.path / "logs" / f".group-{group}-{os.getpid()}-{attempt}.rendezvous"


def _log(run: Run, group: int, replica: int) -> Path:
    return run.path / "logs" / f"group-{group}-process-{replica}.log"


def _attend(run: Run, config: Config, unit: Sequence[Group], *, watch: Watch) -> None:
    """React to processes that have ended, of a group or of groups that start and end together."""
    if all(group.over for group in unit):
        return
    codes = {group.index: [process.poll() for process in group.processes] for group in unit}
    for group in unit:
        group.over = all(code == 0 for code in codes[group.index])
    if all(code in (None, 0) for own in codes.values() for code in own):
        return
    _end(unit)
    endings = {group.index: _ending(run, group, before=codes[group.index]) for group in unit}
    group = min(unit, key=lambda group: _rank(endings[group.index], codes[group.index]))
    error = endings[group.index]
    if len(unit) > 1 and isinstance(error, LostWorkers) and None in endings.values():
        error = None  # a group that does not hear one that crashed
    if error is None and group.attempt <= config.launch.restarts:
        replica, code = _first_bad(codes[group.index])
        watch.say(
            f"group {group.index} {' '.join(_how(code))} after step {watch.steps[group.index]} and is started again from its last "
            f"checkpoint, {group.attempt} of launch.restarts={config.launch.restarts} times. {_log(run, group.index, replica)} says more."
        )
        for each in unit:
            each.over = False
            _start(run, config, each)
        return
    _lose(config, group, error or _crash(run, config, group, before=codes[group.index]))


def _rank(error: OdistError | None, codes: Sequence[int | None]) -> int:
    """Sorts groups that ended together: first one with a cause of its own, then one that was killed or crashed."""
    if error is not None:
        return 3 if isinstance(error, LostWorkers) else 4 if isinstance(error, Interrupted) else 0
    return 1 if any(code is not None and code < 0 for code in codes) else 2


def goes_on_alone(config: Config) -> bool:
    """Whether the groups lose nothing but a fresher teacher when one of them is gone."""
    peers = peers_options(config)
    return peers is not None and peers.timing == "freshest"


def _lose(config: Config, group: Group, error: OdistError) -> None:
    """Give up a group. Under freshest timing its peers go on with an older teacher; otherwise the run ends."""
    if not goes_on_alone(config) or isinstance(error, Interrupted | UserError | CannotWrite):
        raise error
    group.over, group.lost = True, error


def _feel(run: Run, config: Config, group: Group, *, watch: Watch) -> None:
    """Tell the user of a group that shows no sign of life, and end it when `launch.patience` is over."""
    if group.over or group.pulse is None:
        return
    group.pulse.feel([process.pid for process in group.processes if process.poll() is None])
    for words in group.pulse.news():
        watch.say(f"group {group.index}, step {watch.steps[group.index]}: {words}")
    if group.pulse.gone:
        what = group.pulse.describe()
        _end([group], patience=SECONDS_TO_SAVE_IF_HUNG)
        limit = f"launch.patience={config.launch.patience:g}"
        text = f"group {group.index} {what} after step {watch.steps[group.index]} ({limit}) and was ended. "
        _lose(config, group, LostWorkers(f"{text}The same command continues it."))


def _ending(run: Run, group: Group, *, before: Sequence[int | None]) -> OdistError | None:
    """The error with which a group ended on purpose, None for a crash.

    before: exit codes of its processes when the first bad one was seen
    If several processes ended, the one that ended on purpose counts: the others crash when it leaves.
    """
    for replica, process in enumerate(group.processes):
        if process.returncode in ENDINGS:
            words = _last_words(run, group.index, replica)
            said = [number for number, line in enumerate(words) if line.partition(": ")[0] in NAMES]
            if not said:
                ending = ENDINGS[process.returncode]
                return ending(
                    "\n".join(words[-5:])
                    or f"group {group.index} gave up without a message: {_log(run, group.index, replica)} is empty."
                )
            name, _, first = words[said[-1]].partition(": ")
            return NAMES[name]("\n".join([first, *words[said[-1] + 1 :]]))
    if all(code in (None, 0, Interrupted.exit_code) for code in before):
        return Interrupted("saved; the same command continues it.")
    return None


def _crash(run: Run, config: Config, group: Group, *, before: Sequence[int | None]) -> OdistError:
    replica, code = _first_bad(before)
    shown = [f"    {line}" for line in _last_words(run, group.index, replica)[-5:]]
    times = "once" if group.attempt == 1 else f"{group.attempt} times"
    restarts = f"(launch.restarts={group.attempt - 1})"
    what, how = _how(code)
    kind = LostWorkers if goes_on_alone(config) or code < 0 else OdistError
    return kind(
        f"group {group.index} {what} {times} {restarts}, the last time {how}. The same command continues it. {_log(run, group.index, replica)} "
        + "\n".join(["ends with:", *shown] if shown else ["is empty."])
    )


def _first_bad(codes: Sequence[int | None]) -> tuple[int, int]:
    """The first of a group's processes that neither runs, ended well nor was told to end, and its exit code."""
    replica = next(number for number, code in enumerate(codes) if code not in (None, 0, Interrupted.exit_code))
    return replica, codes[replica] or 1


def _how(code: int) -> tuple[str, str]:
    """What became of a process with a bad exit code, and how; below 0 it is that of a signal."""
    if code >= 0:
        return "crashed", f"with exit code {code}"
    hint = ", as when memory runs out" if -code == signal.SIGKILL else ""
    name = next((known.name for known in signal.Signals if known.value == -code), "unknown")
    return "was killed", f"by signal {-code} ({name}{hint})"


def _last_words(run: Run, group: int, replica: int) -> list[str]:
    return _log(run, group, replica).read_text(encoding="utf-8", errors="replace").strip().splitlines()


def _end(groups: Sequence[Group], *, patience: float = SECONDS_TO_SAVE) -> None:
    """Ask every living process to save and end; kill those that do not within `patience` seconds."""
    for group in groups:
        for process in group.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGCONT)  # one that somebody stopped has to wake up to save
    deadline = time.monotonic() + patience
    for group in groups:
        soon = min(deadline, time.monotonic() + SECONDS_TO_LEAVE)
        for process in group.processes:
            while process.poll() is None:
                crashed = any(
                    other.poll() not in (None, 0, Interrupted.exit_code, *ENDINGS) for other in group.processes
                )
                if time.monotonic() > (soon if crashed else deadline):
                    process.kill()
                    process.wait()
                time.sleep(0.02)
