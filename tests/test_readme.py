"""Every Python block and every command of README.md and docs/*.md runs, in the order of its page;
every link leads somewhere.

README.md's run each time, the other pages' with ``--slow``.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = {
    str(page.relative_to(ROOT if page.name == "README.md" else ROOT / "docs")): page.read_text()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}

# Printed commands that are not run here, and why. A command that is neither here nor in NEED_DATA
# is run.
NOT_RUN = {
    "python tools/dev/plant_faults.py": "minutes; test_faults.py plants them all",
    "sfp prepare voc21 ade20k --download": "gigabytes",
    "sfp verify --minutes 60 --images cat.jpg=cat street.jpg=bus --out verified": "an hour, real weights, photographs",  # noqa: E501
    "sh scripts/run_tests.sh": "these tests themselves",
    "python tools/dev/draw_pictures.py pictures --only page.png": "drives a browser, as test_page.py does",  # noqa: E501
    "python tools/measure_speed.py --methods CLIP ClearCLIP SC-CLIP SFP --batch 24 --out speed.json": "minutes",  # noqa: E501
    "python tools/compare_precision.py --scenes 10 --precisions bf16": "minutes",
    "sfp page": "serves until it is stopped; test_page.py starts it",
    "sfp page --model ViT-B/16 --pretrained weights/ViT-B-16.pt --port 8000": "needs OpenAI's weights",  # noqa: E501
    'sfp segment photo.jpg --names "cat, sofa, window" --background "background, wall, floor"': "needs OpenAI's weights",  # noqa: E501
    'sfp segment photos --names "cat, sofa" --engine ray --address head:6379': "needs a Ray cluster",  # noqa: E501
    'sfp segment "docs/pictures/sc*.jpg" --names "sky, sea, boat" --model Toyland --out on_ray --engine ray --actors 1': "needs Ray; test_on_ray.py does it",  # noqa: E501
    "NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine sh scripts/distribute_test.sh configs/cfg_ade20k.py 8": "two machines",  # noqa: E501
    "NNODES=2 NODE_RANK=1 MASTER_ADDR=first-machine sh scripts/distribute_test.sh configs/cfg_ade20k.py 8": "two machines",  # noqa: E501
    "srun -n 8 --gres=gpu:8 --ntasks-per-node=8 sh scripts/distribute_test.sh configs/cfg_ade20k.py": "Slurm",  # noqa: E501
    "sh scripts/distribute_test.sh configs/cfg_ade20k.py 8 --cfg-options model.method=SC-CLIP": "eight GPUs, and a dataset",  # noqa: E501
    "sh scripts/multi_test.sh --methods SFP SC-CLIP --datasets voc21 ade20k --devices 0 1 2 3": "four GPUs, and datasets",  # noqa: E501
}
# These need a dataset; without it they must say so in one sentence.
NEED_DATA = {
    "sfp prepare voc21 --download",
    "sfp check voc21",
    "sfp prepare city_scapes --source gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip",
    "sh scripts/test.sh configs/cfg_voc21.py",
    "sh scripts/test.sh configs/cfg_voc20.py --cfg-options model.method=SC-CLIP "
    "model.clip=ViT-L/14",
    "sh scripts/test.sh configs/cfg_ade20k.py --cfg-options settings=tcl",
    "sh scripts/multi_test.sh --methods SCLIP ClearCLIP SC-CLIP SFP --datasets voc21 context60 "
    "coco_object voc20 context59",
}


@dataclass(frozen=True)
class Step:
    """What a page tells to do: a "python" block or an "sh" command to run, or a "file" to write."""

    page: str
    number: int
    kind: str
    text: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.file or self.kind}"


def steps(page: str) -> list[Step]:
    """The steps of a page; a block after a line "In `file`:" is that file's text.

    Raises:
        ValueError: a block of another language.
    """
    found: list[Step] = []
    for file, language, text in re.findall(
        r"^(?:In `([^`\n]+)`:\n\n)?```(\w*)\n(.*?)^```$", PAGES[page], re.S | re.M
    ):
        if file:
            found.append(Step(page, len(found), "file", text, file))
        elif language == "sh":
            found += [
                Step(page, len(found) + i, "sh", line)
                for i, line in enumerate(re.sub(r"\\\n *", "", text).splitlines())
            ]
        elif language == "python":
            found.append(Step(page, len(found), "python", text))
        elif language != "text":
            raise ValueError(f"{page} has a block of {language!r}; write python, sh or text.")
    return found


STEPS = [step for page in PAGES for step in steps(page)]
COMMANDS = {step.text for step in STEPS if step.kind == "sh"}


def words(command: str) -> list[str]:
    """A printed command as a program and its arguments; ``sfp`` is that of the checkout."""
    parts = shlex.split(command)
    return [sys.executable, "-m", *parts] if parts[0] == "sfp" else parts


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(cwd), **environment}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Callable[[str], Path]:
    """For each page a checkout of its own, which its steps may write to.

    Only the number of scenes is cut.
    """
    made: dict[str, Path] = {}

    def of(page: str) -> Path:
        if page not in made:
            folder = made[page] = tmp_path_factory.mktemp("checkout")
            for name in ("configs", "sfp", "tests"):
                shutil.copytree(ROOT / name, folder / name)
            with (folder / "configs/cfg_toyland.py").open("a") as config:
                config.write('test_dataloader["dataset"]["scenes"] = 3\n')
            for name in (
                "docs",
                "scripts",
                "tools",
                "setup.py",
                "pyproject.toml",
                "constraints.txt",
                "README.md",
            ):
                (folder / name).symlink_to(ROOT / name)
        return made[page]

    return of


def test_the_lists_are_of_printed_commands():
    assert {*NOT_RUN, *NEED_DATA} <= COMMANDS and not NEED_DATA & NOT_RUN.keys()
    assert COMMANDS - NEED_DATA - NOT_RUN.keys()


def to_run() -> list:
    """The steps that are run, slow ones marked."""
    steps = [step for step in STEPS if step.text not in {*NOT_RUN, *NEED_DATA}]
    return [
        pytest.param(step, id=str(step), marks=() if step.page == "README.md" else pytest.mark.slow)
        for step in steps
    ]


# over 5 s: each step is a fresh interpreter, as it is for a reader
@pytest.mark.parametrize("step", to_run())
def test_step(step, checkout, tmp_path_factory):
    folder = checkout(step.page)
    if step.kind == "file":
        (folder / step.file).write_text(step.text)
        return
    command = words(step.text) if step.kind == "sh" else [sys.executable, "-c", step.text]
    done = run(command, folder, SFP_DATA=str(tmp_path_factory.getbasetemp() / "readme_data"))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


# over 5 s: each command is a fresh interpreter, as it is for a reader
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=() if command in PAGES["README.md"] else pytest.mark.slow)
        for command in sorted(NEED_DATA)
    ],
)
def test_command_that_needs_data(command, checkout, tmp_path):
    nowhere = (
        ["--mirror", "http://127.0.0.1:9"] if "--download" in command else []
    )  # where there is a network, nothing is fetched
    done = run([*words(command), *nowhere], checkout("README.md"), SFP_DATA=str(tmp_path))
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert re.search(
        r"^(error|failed): .*(data root|There is no|does not exist|http://127.0.0.1:9)",
        done.stderr,
        re.M,
    ), done.stderr


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = ROOT / ("README.md" if page == "README.md" else f"docs/{page}")
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = here.parent / file if file else here
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), target


def test_pictures_are_those_that_the_program_draws():
    drawn = runpy.run_path(str(ROOT / "tools/dev/draw_pictures.py"))["PICTURES"]
    kept = {path.name: path.stat().st_size for path in (ROOT / "docs/pictures").iterdir()}
    measured = {"many.png"}  # by tools/dev/measure_many.py
    assert kept.keys() == drawn.keys() | measured
    assert max(kept.values()) < 400_000 and sum(kept.values()) < 2_000_000
    for name in kept:
        assert any(f"pictures/{name}" in text for text in PAGES.values()), name
