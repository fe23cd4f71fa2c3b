"""A method that someone adds.

A dozen lines, registered at run time, usable in Python, in a config and on the command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap

import forked
import pytest
from conftest import ROOT

from sfp.datasets import toyland

SOURCE = '''
    """Values of the last block smoothed by a box: not a published method."""

    from typing import Literal

    import torch.nn.functional as F

    from sfp.methods import METHODS, Method


    @METHODS.register("Box")
    class Box(Method):
        """A box filter.

        Args:
            side: of the box, in patches.
        """

        side: Literal[1, 3, 5] = 3

        def tokens(self, windows):
            stream, block = self.stream(windows), self.last_block
            values = block.project(block.values(block.normed(stream)))[:, 1:]
            maps = values.transpose(1, 2).unflatten(2, self.trunk.grid_of(*windows.shape[-2:]))
            return F.avg_pool2d(maps, self.side, 1, self.side // 2).flatten(2).transpose(1, 2)
'''
CONFIG = """
    _base_ = ["{configs}/cfg_toyland.py"]
    custom_imports = dict(imports=["sfp", "box_method"], allow_failed_imports=False)
    test_dataloader = dict(dataset=dict(data_root="{data}", scenes=2))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("added")
    (root / "box_method.py").write_text(textwrap.dedent(SOURCE))
    (root / "cfg_mine.py").write_text(
        textwrap.dedent(CONFIG.format(configs=ROOT / "configs", data=root / "toyland"))
    )
    toyland.write_split(root / "toyland", "val", 2)
    return root


def run(folder, *command: str, code: int = 0) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = forked.run(*command, cwd=folder, environment=environment)
    assert done.returncode == code, done.stdout[-1500:] + done.stderr[-2500:]
    return done


def test_command_line(folder):
    test = str(ROOT / "tools/test.py")
    options = ["model.side=5", "model.purify=True", "model.pm=DBSCAN", "model.purify_layers=[5,11]"]
    run(
        folder,
        test,
        "cfg_mine.py",
        "--work-dir",
        "work",
        "--cfg-options",
        "model.method=Box",
        *options,
    )
    result = json.loads((folder / "work/results.json").read_text())
    assert result["method"] == "Box" and result["images"] == 2 and result["mIoU"] > 10
    assert result["pm"] == "DBSCAN" and result["options"]["side"] == 5


def test_mistakes_in_its_options_are_found_as_in_ours(folder):
    test = str(ROOT / "tools/test.py")
    done = run(
        folder,
        test,
        "cfg_mine.py",
        "--work-dir",
        "w",
        "--cfg-options",
        "model.method=Box",
        "model.side=4",
        code=2,
    )
    assert "Unknown side of method Box 4" in done.stderr and "Choose one of: 1, 3, 5" in done.stderr


# over 5 s: pytest runs in pytest, with its own imports
def test_segmenter_and_the_shared_tests(folder):
    """``Segmenter`` takes it, and tests/methods/test_methods.py tests it unasked."""
    (folder / "use.py").write_text(
        textwrap.dedent(
            """
            import box_method, sfp
            from sfp.datasets import toyland
            box = sfp.Segmenter("Box", model="Toyland", side=1, purify=True, pm="L2")
            result = box(toyland.make_scene("val", 0).image, ["sky", "sea"])
            print(sfp.list_methods(), result.labels.shape, result.protocol["purifier"])
            """
        )
    )
    out = run(folder, "use.py").stdout
    assert "'Box'" in out and "L2(topk=10" in out
    (folder / "conftest_plugin.py").write_text("import box_method\n")
    tests = [
        str(ROOT / "tests/methods/test_methods.py"),
        "-k",
        "Box and (square or batch or gradients or constant or narrow)",
        "-q",
        "-p",
        "conftest_plugin",
        "-p",
        "no:cacheprovider",
    ]
    assert " passed" in run(folder, "-m", "pytest", *tests).stdout
