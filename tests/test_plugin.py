"""What is said where mmsegmentation or torchvision don't fit, in processes that meet such an
installation.
"""

from __future__ import annotations

import os
import subprocess
import sys

import forked
from conftest import ROOT


def run(code: str, tmp_path) -> subprocess.CompletedProcess:
    """Run code with a folder before all others on the path, in which a test put packages."""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


ARGUMENTS = [str(ROOT / "tools/test.py"), str(ROOT / "configs/cfg_toyland.py")]
TEST = (
    f"import runpy, sys; sys.argv = {ARGUMENTS!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def package(folder, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_without_mmsegmentation(tmp_path):
    package(tmp_path, "mmseg", "raise ModuleNotFoundError(\"No module named 'mmseg'\")")
    done = run(TEST, tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: mmsegmentation can't be imported" in done.stderr
    assert "mmcv-lite==2.1.0 with onedl-mmsegmentation==1.4.2" in done.stderr


def test_with_a_pair_that_does_not_fit(tmp_path):
    package(
        tmp_path,
        "mmseg",
        "raise AssertionError('MMCV==2.2.0 is used but incompatible. Please install "
        "mmcv>=2.0.0rc4.')",
    )
    done = run(TEST, tmp_path)
    assert (
        done.returncode == 2
        and "MMCV==2.2.0 is used but incompatible" in done.stderr
        and "mmsegmentation==1.2.2" in done.stderr
    )


def test_the_library_works_without_mmsegmentation(tmp_path):
    package(tmp_path, "mmseg", "raise ModuleNotFoundError(\"No module named 'mmseg'\")")
    code = "import sys, sfp; sfp.Segmenter('SFP', sfp.load_clip('Toyland', device='cpu'))"
    code += "; print(sfp.list_methods(), 'sklearn' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = forked.run("-c", code, cwd=tmp_path, environment=environment, imported="library")
    assert done.returncode == 0 and "SFP-release" in done.stdout
    # what a start needn't wait for: only some methods and detectors use it
    assert done.stdout.split()[-1] == "False"


def test_a_torchvision_of_another_torch(tmp_path):
    package(
        tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    done = run("import sfp; sfp.load_clip('Toyland')", tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert "SFPError: torch" in last and "are not a pair" in last and "torchvision==" in last
    scene = str(ROOT / "docs/pictures/scene.jpg")
    arguments = [str(ROOT / "tools/segment.py"), scene, "--names", "cat"]
    segment = f"import runpy, sys; sys.argv = {arguments!r}; "
    segment += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run(segment, tmp_path)
    assert (
        done.returncode == 2 and "Traceback" not in done.stderr and "are not a pair" in done.stderr
    )


def test_importing_sfp_is_light(tmp_path):
    """mmseg's models and datasets are imported when a config asks for them, not with ``import
    sfp``.
    """
    done = run(
        "import sys, sfp; print('mmseg.models' in sys.modules, 'mmseg.datasets' in sys.modules)",
        tmp_path,
    )
    assert done.stdout.split() == ["False", "False"] and done.stderr == ""
