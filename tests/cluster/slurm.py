"""Debian's Slurm with a controller and a daemon on each of some nodes, for the time of a test."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nodes import NETWORK, Node, eventually

COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged")
CONFIG = """\
ClusterName=odist
SlurmctldHost={host}({network}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=10
MinJobAge=3600
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Which command of Slurm is not installed; None when all are."""
    for command in COMMANDS:
        if shutil.which(command) is None:
            return f"needs Slurm (no command {command}): apt-get install slurm-wlm munge"
    return None


class Slurm:
    """A running Slurm; `environment` makes its commands find it."""

    def __init__(self, folder: Path, machines: Sequence[Node], *, cores: int, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.nodes = {node.name: node for node in machines}
        self.config = folder / "slurm.conf"
        self.environment = {**environment, "SLURM_CONF": str(self.config)}
        self._daemons: list[subprocess.Popen[bytes]] = []
        lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs={cores} State=UNKNOWN" for node in machines]
        (folder / "state").mkdir()
        self.config.write_text(
            CONFIG.format(host=socket.gethostname(), network=NETWORK, folder=folder, nodes="\n".join(lines))
        )
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")

    @property
    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def begin(self) -> None:
        """Start munge, the controller and the nodes' daemons, and wait until all nodes are idle."""
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{ending}" for option, ending in files.items()]
        self._launch("munged", "--foreground", "--force", f"--key-file={key}", *options)
        eventually((self.folder / "munge.socket").exists, seconds=20, what="munged", logs=self.logs)
        self._launch("slurmctld", "-D", "-f", str(self.config))
        for name in self.nodes:
            self.boot(name)
        eventually(
            lambda: set(self.states().values()) == {"IDLE"}, seconds=60, what=f"nodes {self.nodes}", logs=self.logs
        )

    def boot(self, name: str) -> None:
        """Start the daemon of a node."""
        node = self.nodes[name]
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        words = ("slurmd", "-D", "-N", name, "-f", str(self.config))
        self._daemons.append(node.start(*words, log=self.folder / f"{name}.log", environment=self.environment))

    def _launch(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out.log", "ab") as log:
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment))

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """The state of every node, such as IDLE or DOWN*."""
        command = ["scontrol", "--oneliner", "show", "nodes"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        return dict(re.findall(r"NodeName=(\S+) .*? State=(\S+)", done.stdout))

    def submit(self, *words: str) -> str:
        """Submit a script with its options and arguments; returns the job's number."""
        return self.ask("sbatch", "--parsable", *words).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, ExitCode, Restarts ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", number)))

    def end(self) -> None:
        """Stop all daemons, the newest first."""
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextlib.contextmanager
def slurm(folder: Path, machines: Sequence[Node], *, cores: int, environment: Mapping[str, str]) -> Iterator[Slurm]:
    """Slurm on these nodes, with so many cores each, whatever they have; it ends with the block."""
    folder.mkdir()
    os.chmod(folder, 0o755)
    cluster = Slurm(folder, machines, cores=cores, environment=environment)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()
