"""What recipes/cluster promises: a JobSet that its schema admits, commands that odist takes, sizes that the models have."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import CONF

from odist.config.read import load, register

CLUSTER = Path(__file__).resolve().parent.parent / "recipes" / "cluster"
PAGE = (CLUSTER / "README.md").read_text(encoding="utf-8")
JOBSET = yaml.safe_load((CLUSTER / "jobset.yaml").read_text(encoding="utf-8"))


def composed(*overrides: str) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def commands() -> list[list[str]]:
    """The arguments of every `odist train` on the page and in the JobSet."""
    page = re.sub(r"\\\n\s*", "", PAGE)
    lines = re.findall(r"^    .*(?:odist train|slurm\.sbatch) ((?:[\w.]+=\S+ ?)+)$", page, flags=re.M)
    assert len(lines) == 6
    return [line.split() for line in lines] + [pod()["containers"][0]["args"][1:]]


def pod() -> dict[str, Any]:
    return JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_jobset_is_one_by_its_schema() -> None:
    """tests/data/jobset.schema.json: the definitions of jobset.x-k8s.io/v1alpha2, batch/v1 and v1 that it uses, closed."""
    schema = json.loads((Path(__file__).parent / "data" / "jobset.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(JOBSET, schema)
    broken = json.loads(json.dumps(JOBSET))
    broken["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restartpolicy"] = "Never"
    with pytest.raises(jsonschema.ValidationError, match="restartpolicy"):
        jsonschema.validate(broken, schema)


def test_the_jobset_starts_as_many_processes_as_it_has_gpus() -> None:
    job = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = pod()["containers"]
    assert job["parallelism"] == job["completions"]
    assert f"--nnodes={job['completions']}" in container["command"]
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in container["command"]
    name, replicated = JOBSET["metadata"]["name"], JOBSET["spec"]["replicatedJobs"][0]["name"]
    assert f"--rdzv-endpoint={name}-{replicated}-0-0.{name}:29400" in container["command"]


def test_every_command_is_one_that_odist_takes() -> None:
    for words in commands():
        load(composed(*words))


def test_the_batch_script_is_sound_and_asks_as_the_page_says() -> None:
    script = CLUSTER / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(encoding="utf-8"), flags=re.M))
    assert int(options["nodes"]) * int(options["ntasks-per-node"]) == 32
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@60"
    assert "requeue" in options


@pytest.mark.slow
def test_sizes_on_the_page_are_those_of_the_models() -> None:
    from odist.engine.problem import build_model, build_task
    from odist.launch.results import forward_flops

    table = {
        row[0]: row[1:]
        for row in (re.split(r" *\| *", line.strip("| ")) for line in PAGE.splitlines() if line[:1] == "|")
    }
    classes = {"imagenet": 990 * (2048 + 1)}  # of 1,000, where synthetic images have 10
    for column, task_name in enumerate(("criteo", "lm", "imagenet")):
        config = load(composed("scale=paper", f"task={task_name}", "algorithm=codistill", "train.batch=1"))
        task = build_task(config)
        model = build_model(config, task, group=0)
        number = sum(parameter.numel() for parameter in model.parameters()) + classes.get(task_name, 0)
        assert table["parameters"][column].startswith(f"{number / 1e6:.1f} million")
        forward = forward_flops(config, task, model)
        unit, name = (1e6, "MFLOP") if forward < 1e9 else (1e9, "GFLOP")
        said, found, *_ = table["forward of an example"][column].split()
        assert (found, float(said)) == (name, pytest.approx(forward / unit, rel=0.01))
        if task_name != "criteo":
            assert table["gradient of a step"][column] == f"{4 * number / 1e6:.0f} MB"
            sent = table["sent by a process in a step, exact or fast"][column]
            assert float(sent.split()[0]) == pytest.approx(2 * 15 / 16 * 4 * number / 1e6, abs=1)
