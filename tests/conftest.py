"""Shared fixtures.

The parity models, and an environment in which nothing is read from or written to the user's
folders.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
os.environ.pop("SFP_DATA", None)
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # several test processes: one thread each, here and in what they start
    os.environ["OMP_NUM_THREADS"] = "1"

# torch is imported where it is needed: the process that only hands out the tests needs none
ROOT = Path(__file__).parent.parent


def parity_clip(spec: str, seed: int | None = None):
    """The frozen CLIP of a parity spec, float32 on the CPU, the index's seed if None."""
    import parity

    return _seeded_clip(spec, parity.SEED if seed is None else seed)


@functools.cache
def _seeded_clip(spec: str, seed: int):
    import parity

    from sfp.clip import load_clip

    with parity.seeded(seed):
        return load_clip(pretrained=parity.state_dict(spec), device="cpu")


def write_ranking(file: Path, clip, names, base: str = "NACLIP") -> Path:
    """A ranking of prompts for FLOSS: the k-th class's best are 5 k and what follows; the last
    class has none.
    """
    from sfp.clip.prompts import IMAGENET_PROMPTS

    count, classes = len(IMAGENET_PROMPTS), {}
    for k, name in enumerate(names):
        seen = 0.0 if name == names[-1] else 1.0
        places = [(5 * k + i) % count for i in range(count)]
        classes[name] = [
            dict(template_id=place, entropy=float(rank), pixel_percentage=seen, rank=rank)
            for rank, place in enumerate(places)
        ]
    known = dict(base=base, prompts=list(IMAGENET_PROMPTS))
    file.write_text(json.dumps({clip.fingerprint: {**known, "classes": classes}}))
    return file


@pytest.fixture(scope="session")
def clip():
    return parity_clip("vit12")


@pytest.fixture(scope="session")
def toyland_clip():
    from sfp.clip import load_clip

    return load_clip("Toyland", device="cpu")


@pytest.fixture
def tool(monkeypatch, capsys):
    """The ``main`` of a program in tools/, in this process.

    Its exit code, output and error line.
    """

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        code = runpy.run_path(str(ROOT / f"tools/{name}.py"))["main"]()
        output = capsys.readouterr()
        errors = [
            line
            for line in output.err.replace("\r", "\n").splitlines()
            if line.startswith("error: ")
        ]
        return code, output.out, errors[0] if errors else ""

    return run


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Text vectors are kept in a folder of the test run; subprocesses inherit it."""
    os.environ["SFP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["SFP_CACHE"]


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


def pytest_addoption(parser):
    parser.addoption(
        "--slow", action="store_true", help="also run what takes long, and think of many more cases"
    )


def pytest_configure(config):
    if config.getoption("dist", "no") != "no" and "PYTEST_XDIST_WORKER" not in os.environ:
        from forked import start_server

        start_server()  # one for all test processes; it imports nothing before it is asked
    slow = config.getoption("--slow")
    settings.register_profile(
        "sfp", deadline=None, derandomize=not slow, max_examples=1500 if slow else 30, database=None
    )
    settings.load_profile("sfp")


def pytest_collection_finish():
    """mmengine collects garbage for each data set, half a second in a process that has imported so
    much: nothing of that is garbage.
    """
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # else a library that counts its objects at the end takes them for leaks


def pytest_collection_modifyitems(config, items):
    import torch

    items.sort(
        key=lambda item: item.path.parent != ROOT / "tests"
    )  # the whole runs first, so that two processes end together
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes long; run with --slow"))
