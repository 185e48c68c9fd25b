"""README.md and the pages of the site as a new user types them: every command block of a page, in order, in one folder, at smoke scale.

The shell splits each line and expands its patterns; what it gives is typed inside this process. Placeholders such as train.txt
are small files of the right layout, of real data where ../shared has them. A command that is no odist, make, mkdir or printf,
or a make target that runs something unknown, fails: teach this file what to do with it.
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, odist
from test_prepare_criteo import make_rows, text_of
from test_prepare_imagenet import encode, pixels, tar_bytes, write_folder
from test_prepare_text import story, write_wet

from odist.cli.gate import EXCEEDED
from odist.run.folder import Run

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("ten_minutes", "codistillation", "criteo", "table", "text", "images", "found")),
]
# Of what README types, keys and options that would take hours at their values there
SMALLER = {
    "hydra.sweeper.n_trials=20": "hydra.sweeper.n_trials=2",
    "train.passes=4": "train.passes=1",
    "8000": "200",  # pieces of --vocabulary, of a few pages
    "1000": "200",
}
TRAINS = ("train", "reproduce", "tune")
NOT_TYPED = ("bench",)  # takes minutes whatever the data; tests/test_bench.py runs each suite at a small size


@dataclass(frozen=True)
class Line:
    """A command of a block: where it stands and what it says, continuation lines joined."""

    page: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


def blocks(page: str, text: str) -> list[Line]:
    """The commands of all indented and fenced blocks, in order; a fence that names a language holds no commands."""
    found: list[Line] = []
    fenced, code, open_line, paragraph = False, False, None, False
    for number, raw in enumerate(text.splitlines(), start=1):
        if raw.lstrip().startswith("```"):
            fenced, paragraph = not fenced, False
            code = fenced and bool(raw.strip(" `"))
            continue
        inside = not code and (fenced or (raw.startswith("    ") and not paragraph))
        paragraph = not inside and not code and bool(raw.strip())
        content = raw if fenced else raw[4:]
        if not inside or not content.strip():
            continue
        if open_line is not None:
            content = f"{found.pop().text[:-1]} {content.strip()}"
        found.append(Line(page, open_line or number, content.strip()))
        open_line = (open_line or number) if content.rstrip().endswith("\\") else None
    return found


def expanded(line: str, *, cwd: Path) -> list[str]:
    """The words that the shell makes of a line: patterns replaced by what they match, comments left out."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def at_smoke_scale(words: list[str]) -> list[str]:
    """The words after `odist`, of a size that ends in seconds."""
    given = [SMALLER.get(word, word) for word in words if not word.startswith("scale=")]
    if given[0] == "train":
        own = [word for word in ("run.progress=false", "scale=smoke") if word.partition("=")[0] not in given]
        return [*given, *own]
    if given[0] in TRAINS and "--scale" not in given:
        given += ["--scale", "smoke"]
    if given[0] == "tune":
        given += ["--dry-run"]  # a hundred runs; tests/test_tune.py tunes a recipe of two
    return given


def outputs(words: list[str]) -> list[str]:
    """The files and folders that a command names as its own to make."""
    named = [value for option, value in itertools.pairwise(words) if option == "--output"]
    return named + [word.removeprefix("run.dir=") for word in words if word.startswith("run.dir=")]


def typed(line: Line, *, cwd: Path) -> None:
    """Run one command; AssertionError with its line in README if it fails or leaves out what it names."""
    name = line.text.split()[0]
    if name in ("mkdir", "printf"):
        subprocess.run(["bash", "-c", line.text], cwd=cwd, check=True)
        return
    if name == "make":
        for word in expanded(line.text, cwd=cwd)[1:]:
            made(word, line, cwd=cwd)
        return
    assert name == "odist", f"{line}\nno one has said how the test runs {name}: see the head of tests/test_readme.py"
    words = expanded(line.text, cwd=cwd)[1:]
    if words[0] == "index":
        shutil.copytree(ROOT / "reports", cwd / "reports", dirs_exist_ok=True)
    if words[0] in NOT_TYPED:
        done = odist(*words, "--help", cwd=cwd)
    else:
        words = at_smoke_scale(words)
        done = odist(*words, cwd=cwd)
    ends_well = (0, EXCEEDED) if "--max" in words else (0,)  # a gate may stop a model of the smallest size
    assert done.returncode in ends_well, (
        f"{line}\n{shlex.join(['odist', *words])}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    if words[0] not in NOT_TYPED:
        missing = [path for path in outputs(words) if not (cwd / path).exists()]
        assert not missing, f"{line}\nended well, but is not there: {', '.join(missing)}"
    for word in words:
        if word.startswith("run.dir="):
            assert Run.open(cwd / word.removeprefix("run.dir=")).finished, str(line)


def made(target: str, line: Line, *, cwd: Path) -> None:
    """What `make TARGET` would run; of it the commands of odist, at smoke scale, in the test's folder."""
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # of a make around the tests
    command = ["make", "--dry-run", "--file", ROOT / "Makefile", "READY=", target]
    done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    for line_of_make in done.stdout.splitlines():
        program, *words = line_of_make.split()
        name = Path(program).name
        if name == "odist":
            typed(Line(line.page, line.number, shlex.join(["odist", *words])), cwd=cwd)
        elif name == "sed":
            shown = Path(words[-1])  # a report, which has the scale in its name where that is not the recipe's own
            smoke = cwd / shown.parent.with_name(f"{shown.parent.name}-smoke") / shown.name
            assert smoke.is_file(), f"{line}\n{line_of_make} shows a file that is not there: {smoke}"
        else:
            known = name in ("ruff", "mypy") or " -m pytest" in line_of_make  # what runs this test
            assert known, f"{line}\nno one has said how the test runs {line_of_make!r}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that README says one should get."""
    import datasets
    import scipy.io

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = tmp_path / "home"
    folder.mkdir()
    real = SHARED / "criteo" / "train.txt.gz"
    if real.is_file():
        with gzip.open(real, "rb") as file:
            lines = [next(file) for _ in range(4000)]
        days = [b"".join(lines[:2500]), b"".join(lines[2500:])]
    else:
        rows = make_rows(4000)
        days = [text_of(rows[:2500]), text_of(rows[2500:])]
    for name, content in zip(("train.txt", "today.txt"), days, strict=True):
        (folder / name).write_bytes(content)
    _write_tables(folder)
    (folder / "crawl").mkdir()
    (folder / "wet").mkdir()
    for number in range(2):
        texts = [story(100 * number + seed) for seed in range(30)]
        write_wet(folder / "crawl" / f"CC-{number}.warc.wet.gz", texts)
        write_wet(folder / "wet" / f"{number}.wet.gz", texts)
    for path in sorted((SHARED / "commoncrawl" / "restored").glob("*.warc.wet.gz")):
        (folder / "crawl" / path.name).write_bytes(path.read_bytes())
    _write_images(folder)
    scipy.io.savemat(
        folder / "meta.mat",
        {
            "synsets": np.array(
                [(number, f"n{number:02d}", 0) for number in (1, 2, 3)],
                dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")],
            )
        },
    )
    return folder


def _write_tables(folder: Path) -> None:
    """A table of clicks with the schema of docs/table.md, and later rows of it without labels."""
    page = (ROOT / "docs" / "table.md").read_text()
    (folder / "schema.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    random = np.random.default_rng(0)
    count = 2500
    table = pd.DataFrame(
        {
            "request": [f"r{place}" for place in range(count)],
            "at": pd.date_range("2024-05-01", periods=count, freq="min"),
            "clicked": random.random(count) < 0.3,
            "age": random.integers(18, 80, count),
            "price": random.gamma(2, 10, count),
            "site": random.choice(["news", "mail", "shop"], count),
            "country": random.choice(["de", "us", None], count),
            "importance": random.choice([0.5, 1.0], count),
        }
    )
    table.to_parquet(folder / "data.parquet")
    table.drop(columns="clicked").head(200).to_parquet(folder / "later.parquet")


def _write_images(folder: Path) -> None:
    """The same small images as folders, as the archives of 2012 and as Parquet."""
    import datasets

    classes = ["n01", "n02", "n03"]
    train = {
        f"{name}/{number:03d}.JPEG": encode(pixels(3 * number + place, height=26, width=28))
        for place, name in enumerate(classes)
        for number in range(40)
    }
    validation = {f"n{1 + i % 3:02d}/ILSVRC2012_val_{i:08d}.JPEG": encode(pixels(500 + i, height=26, width=28)) for i in range(30)}  # fmt: skip
    parts = {"train": train, "val": validation}
    for name in ("imagenet", "tiny-imagenet"):
        write_folder(folder / name, {f"{part}/{path}": data for part in parts for path, data in parts[part].items()})
    tars = {f"{name}.tar": tar_bytes({Path(p).name: d for p, d in train.items() if p.startswith(name)}) for name in classes}  # fmt: skip
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(tars))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes({Path(p).name: d for p, d in validation.items()}))
    truth = "".join(f"{int(path[1:3])}\n" for path in sorted(validation, key=lambda path: Path(path).name))
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    for part, split in (("train", "train"), ("val", "validation")):
        rows = {
            "image": [{"bytes": data, "path": path} for path, data in parts[part].items()],
            "label": [classes.index(path[:3]) for path in parts[part]],
        }
        (folder / "imagenet-parquet" / "data").mkdir(parents=True, exist_ok=True)
        made = datasets.Dataset.from_dict(rows, features=features)
        made.to_parquet(str(folder / "imagenet-parquet" / "data" / f"{split}-00000-of-00001.parquet"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_in_order(page: str, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = blocks(page, (ROOT / page).read_text())
    assert lines
    for line in lines:
        typed(line, cwd=home)
    left = {path.name for path in home.iterdir()} - {"runs", "plots", "data", "predictions", "mine", "out", "reports"}
    assert not {name for name in left if name.startswith(("step-", ".odist", "multirun", "outputs"))}, left


def test_commands_are_found_as_a_reader_sees_them() -> None:
    text = """# x

    odist train \\
        seed=1
    odist runs  # all

Words:

    - no paragraph
and words
    that go on

```
odist plot runs
```
"""
    assert [(line.number, line.text) for line in blocks("x.md", text)] == [
        (3, "odist train  seed=1"),
        (5, "odist runs  # all"),
        (9, "- no paragraph"),
        (14, "odist plot runs"),
    ]


def test_a_command_that_nobody_knows_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"README.md:7: curl.*\n.*how the test runs curl"):
        typed(Line("README.md", 7, "curl -O http://x"), cwd=tmp_path)


def test_a_pattern_that_finds_two_runs_is_what_the_shell_gives(tmp_path: Path) -> None:
    for name in ("a-1", "a-2"):
        (tmp_path / name).mkdir()
    assert expanded("odist eval a-* 'b-*' --json  # both", cwd=tmp_path) == [
        "odist",
        "eval",
        "a-1",
        "a-2",
        "b-*",
        "--json",
    ]


def test_extras_that_the_readme_names_are_there() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"odist\[(\w+)\]", README.read_text()))
    assert named <= set(extras), named - set(extras)
