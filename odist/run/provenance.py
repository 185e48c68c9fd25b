"""Where a run comes from: the commit, the package's source, versions of packages, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from odist import __version__

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "datasets", "pandas", "safetensors", "numba")


def environment(*, config_hash: str, data_fingerprint: str | None, run_id: str | None = None) -> dict[str, Any]:
    """Content of a run's env.json. run_id: which the user gave it; None: a new one"""
    return {
        "commit": commit(),
        "source_hash": source_hash(),
        "versions": versions(),
        "hardware": hardware(),
        "data_fingerprint": data_fingerprint,
        "config_hash": config_hash,
        "run_id": run_id or uuid.uuid4().hex,  # tells the exchange whose snapshots lie in a store
    }


def package_root() -> Path:
    """The folder of the package."""
    return Path(__file__).resolve().parent.parent


def source_hash() -> str:
    """sha256 over paths and contents of every Python file of the package."""
    digest = hashlib.sha256()
    root = package_root()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def commit() -> str | None:
    """Commit of the package's own checkout, with `-dirty` for changed files; None outside one."""
    top = _output("git", "-C", str(package_root()), "rev-parse", "--show-toplevel")
    # A package installed into some project's environment lies inside that project's checkout: not its own.
    if top is None or Path(top).resolve() != package_root().parent:
        return None
    name = _output("git", "-C", top, "rev-parse", "--verify", "--quiet", "HEAD")
    if name is None:
        return None
    changed = _output("git", "--no-optional-locks", "-C", top, "status", "--porcelain", "--", "odist", "conf")
    return f"{name}-dirty" if changed else name


def _output(*command: str) -> str | None:
    """What a command prints, stripped; None if it fails or is missing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str | None]:
    """Versions of Python, odist and the packages that decide numbers."""
    found: dict[str, str | None] = {"python": platform.python_version(), "odist": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and accelerator."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": _cpu(), "cores": num_cores(), "memory_gb": round(memory / 1e9, 1), "gpu": _gpu()}


def num_cores() -> int:
    """Cores that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str | None:
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    listed = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return listed.splitlines()[0] if listed else None


def process_start(pid: int) -> str | None:
    """When a living process of this machine began, as the kernel counts it; None if there is none.

    Tells a process from a later one of the same number. `unknown` where the system does not say.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # lives, under another user
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "unknown"
    return None if fields[0] == "Z" else fields[19]
