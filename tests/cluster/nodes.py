"""Machines of a cluster on one: network namespaces on a bridge, each with a host name and an address of its own.

They share the file system, as the nodes of a cluster share a folder, and nothing of the network: every connection between
them goes over the bridge. Needs root and Linux.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

BRIDGE = "odist-br"
NETWORK = "10.213.7"


def missing() -> str | None:
    """Why there can be no such nodes here; None where there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for command in ("ip", "unshare", "mount"):
        if shutil.which(command) is None:
            return f"needs the command {command}"
    return None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Node:
    """One machine: commands started on it see its host name, its address and the names of the others."""

    def __init__(self, number: int, hosts: Path) -> None:
        self.name = f"node{number}"
        self.address = f"{NETWORK}.{number + 1}"
        self._namespace = f"odist-{self.name}"
        self._outside = f"odist-o{self.name}"  # its end of the cable in the bridge
        self._hosts = hosts

    def join(self) -> None:
        """Make the namespace and plug it into the bridge."""
        outside, inside = self._outside, f"odist-i{self.name}"
        _run("ip", "netns", "add", self._namespace)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", self._namespace)
        _run("ip", "link", "set", outside, "master", BRIDGE, "up")
        for command in (
            f"link set {inside} name eth0",
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
        ):
            _run("ip", "-n", self._namespace, *command.split())

    def command(self, *words: str) -> list[str]:
        """The command that runs `words` on this node."""
        names = f"mount --bind {self._hosts} /etc/hosts && mount --bind /dev/null /etc/resolv.conf"
        enter = f'hostname {self.name} && {names} && exec "$@"'
        unshare = ["unshare", "--uts", "--mount", "sh", "-c", enter, self.name]
        return ["ip", "netns", "exec", self._namespace, *unshare, *words]

    def start(self, *words: str, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a command on this node; both its streams go to `log`."""
        with open(log, "ab") as file:
            return subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(environment)
            )

    def processes(self) -> list[int]:
        """Ids of all processes of this node."""
        listed = subprocess.run(["ip", "netns", "pids", self._namespace], capture_output=True, text=True, check=False)
        return [int(number) for number in listed.stdout.split()]

    def kill(self) -> None:
        """Kill every process of this node at once, as when its power fails."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def leave(self) -> None:
        """Kill what runs on it and take the namespace away; one that is not there is no error."""
        self.kill()
        for command in (["link", "del", self._outside], ["netns", "del", self._namespace]):
            subprocess.run(["ip", *command], capture_output=True, check=False)


@contextlib.contextmanager
def nodes(number: int, *, folder: Path) -> Iterator[list[Node]]:
    """So many nodes that reach each other by name, and this machine as `head`; all go at the end.

    folder: for their table of names
    """
    hosts = folder / "hosts"
    made = [Node(index, hosts) for index in range(number)]
    table = {"localhost": "127.0.0.1", "head": f"{NETWORK}.254"} | {node.name: node.address for node in made}
    hosts.write_text("".join(f"{address} {name}\n" for name, address in table.items()))

    def clear() -> None:
        for node in made:
            node.leave()
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)

    clear()  # what a killed test left
    try:
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for node in made:
            node.join()
        yield made
    finally:
        clear()


def eventually(question: Callable[[], object], *, seconds: float, what: str, logs: Sequence[Path] = ()) -> None:
    """Wait until `question` has a true answer; AssertionError, with the ends of `logs`, after so many seconds."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            ends = [f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.is_file()]
            raise AssertionError("\n".join([f"waited {seconds:g} s in vain: {what}", *ends]))
        time.sleep(0.1)
