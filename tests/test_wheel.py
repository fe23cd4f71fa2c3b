"""The wheel: what is in it, and that it works where there is no repository."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from sfp.datasets import toyland


def build(folder: Path, **environment: str) -> Path:
    """A wheel of this checkout, made from a copy, so that nothing is left in the repository."""
    source = folder / "source"
    for name in ("sfp", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--no-index", "-w", str(folder), str(source)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"))


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_every_file_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert wheel.name.startswith("sfp_ovss-")
    for folder, place in (("sfp", "sfp"), ("configs", "sfp/configs")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{place}/{path.relative_to(ROOT / folder).as_posix()}" in packed
    tops = {name.split("/")[0] for name in packed}
    assert tops == {"sfp", next(top for top in tops if top.endswith(".dist-info"))}
    assert any(name.endswith("/licenses/LICENSE") for name in packed)


def test_its_description_stands_by_itself(wheel):
    card = metadata(wheel)
    assert (card["Name"], card["License-Expression"] or card["License"]) == ("sfp-ovss", "MIT")
    assert len(card.get_all("Classifier")) > 5 and card.get_all("Project-URL") is None
    text = card.get_payload()
    assert text.startswith("# SFP") and "sh scripts/test.sh" in text and "![" not in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(re.match(r"https?://|#", target) for target in targets)


def test_with_an_address_its_links_lead_there(tmp_path):
    address = "https://forge.example/sfp/blob/main"
    card = metadata(build(tmp_path, SFP_URL=f"{address}/"))
    assert card.get_all("Project-URL") == [f"Repository, {address}"]
    text = card.get_payload()
    assert f"]({address}/docs/pictures/toyland.png)" in text
    for target in re.findall(rf"\]\({re.escape(address)}/([^)#]+)", text):
        assert (ROOT / target).exists()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a program of an environment that has the wheel, and this one's dependencies, from an
    empty folder.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    # a path file's own path files aren't read: the checkout stays out
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python"), "install"]
    options = ["-q", "--no-deps", "--no-index", "--force-reinstall"]  # the checkout is in sight
    subprocess.run([*pip, *options, str(wheel)], check=True)
    assert (folder / "env/bin/sfp").is_file()
    (folder / "empty").mkdir()
    Image.fromarray(toyland.make_scene("val", 10).image).save(folder / "empty/photo.jpg")
    kept = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SFP_DATA")
    }

    def run(program: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [str(folder / "env/bin" / program), *arguments]
        options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=folder / "empty", env=kept, **options)

    def finished(program: str, *arguments: str) -> str:
        process = run(program, *arguments)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, out + err
        return out

    finished.start, finished.folder = run, folder
    return finished


# over 5 s: an environment is made, and a fresh interpreter imports torch
def test_segment_and_the_library(installed):
    """The program ``sfp`` by itself, then after the library in one interpreter."""
    assert "usage: sfp" in installed("sfp", "--help")
    names = ["--names", "boat", "--model", "Toyland", "--options", "prompts=photo"]
    program = str(installed.folder / "env/bin/sfp")
    code = f"""
import runpy, sys, sfp
print(sfp.__file__)
print(sfp.Segmenter(model="Toyland", prompts="photo")("photo.jpg", ["sky", "sea"]))
sys.argv = {["sfp", "segment", "photo.jpg", *names]!r}
runpy.run_path({program!r}, run_name="__main__")
"""
    place, result, *said = installed("python", "-c", code).splitlines()
    assert Path(place).is_relative_to(installed.folder) and "Segmentation of 499x374" in result
    assert "boat" in "\n".join(said)
    assert (installed.folder / "empty/segmented/photo_overlay.jpg").is_file()


@pytest.mark.slow
def test_evaluate(installed):
    said = installed(
        "sfp", "evaluate", "toyland", "--cfg-options", "test_dataloader.dataset.scenes=2",
        "model.prompts=photo",
    )  # fmt: skip
    assert "mIoU" in said
    here = installed.folder / "empty"
    assert (here / "work_dirs/cfg_toyland/results.json").is_file()
    assert (here / "data/toyland").is_dir()  # not beside the configs, in the environment
    said = installed("sfp", "benchmark", "--help")
    assert "usage: sfp benchmark" in said


def answers(server: subprocess.Popen) -> urllib.request.addinfourl:
    """The page's answer, read; the server has ended then."""
    try:
        address = next(
            found[0] for line in server.stdout if (found := re.search(r"http://\S+", line))
        )
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.status == 200 and b"SFP" in answer.read()
        return answer
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.mark.slow
def test_page(installed):
    pytest.importorskip("gradio")
    answers(installed.start("sfp", "page", "--port", "0", stderr=subprocess.STDOUT))


@pytest.mark.slow
def test_the_space(installed, wheel, tmp_path, monkeypatch):
    """Its files and the wheel in a folder: the page answers, may be shown by the hub, and leaves
    nothing behind; without the wheel there is a sentence.
    """
    pytest.importorskip("gradio")
    app = shutil.copytree(ROOT / "scripts/space", tmp_path / "space") / "app.py"
    done = subprocess.run([sys.executable, app], capture_output=True, text=True)
    assert done.returncode == 1 and "error: 0 wheels lie in" in done.stderr
    shutil.copy(wheel, app.parent)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    command = [sys.executable, str(app), "--host", "127.0.0.1", "--port", "0"]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    server = subprocess.Popen(
        command, cwd=tmp_path, env=kept | {"MODEL": "Toyland"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    policy = answers(server).headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' https://huggingface.co")
    assert server.returncode == 0 and not list(temporary.iterdir())


@pytest.mark.slow
def test_the_colab_notebook_from_the_wheel(installed, wheel):
    """Its first cell installs the wheel that lies beside it; what follows is of that."""
    pytest.importorskip("nbclient")
    empty = installed.folder / "empty"
    for file in (ROOT / "notebooks/colab.ipynb", wheel):
        shutil.copy(file, empty)
    code = "from nbclient.cli import main; main(['colab.ipynb', '--inplace'])"
    installed("python", "-c", code)
    assert (empty / "result.zip").is_file()
