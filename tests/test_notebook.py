"""The notebooks are stored with the outputs of a run, and run from top to bottom."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from forked import Program
from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient
from PIL import Image

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {  # of which cells
    "colab": {"segment", "compare", "inside"},
    "outlier_vis": {
        "attention", "count", "who", "detectors", "patch", "repair-all", "features", "segmentation",
    },
}  # fmt: skip
ADVICE = "run tools/dev/run_notebooks.py"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(ROOT / "notebooks/outlier_vis.ipynb", as_version=4)


def shown(notebook: nbformat.NotebookNode) -> dict[str, list[Mapping]]:
    """What each cell shows, by kind of content; its printed words are of the kind "text"."""
    return {
        cell["id"]: [
            output.data if "data" in output else {"text": output.text} for output in cell.outputs
        ]
        for cell in code_cells(notebook)
    }


def figures(notebook: nbformat.NotebookNode) -> dict[str, np.ndarray]:
    """The pictures by their cells, RGB."""
    return {
        name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB"))
        for name, outputs in shown(notebook).items()
        for data in outputs
        if "image/png" in data
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_valid_and_stored_with_its_outputs(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), ADVICE
    assert not any(cell.metadata for cell in cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(figures(notebook)) == FIGURES[file.stem], ADVICE
    assert file.stat().st_size < 1_500_000
    text = file.read_text()
    assert str(ROOT) not in text and "/tmp/" not in text and "site-packages" not in text


def test_one_line_chooses_the_model_and_one_the_picture(notebook):
    lines = [
        line
        for cell in notebook.cells
        if cell.cell_type == "code"
        for line in cell.source.splitlines()
    ]
    assert (
        sum("MODEL, WEIGHTS =" in line for line in lines)
        == sum("picture, names =" in line for line in lines)
        == 1
    )
    assert not any(
        '"Toyland"' in line or "cpu" in line
        for line in lines
        if not line.startswith("MODEL, WEIGHTS =")
    )


KERNEL = """
import matplotlib, runpy, sys
# mmengine has imported it: too early for the environment variable that the kernel sets
matplotlib.use("module://matplotlib_inline.backend_inline")
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class Forked(LocalProvisioner):
    """Jupyter's command for a kernel in a process that has its imports done."""

    async def launch_kernel(self, cmd, **options):
        where = dict(cwd=options["cwd"], environment=options["env"])
        self.process = Program("-c", KERNEL, *cmd[1:], **where)
        self.pid = self.pgid = self.process.pid
        return self.connection_info

    async def wait(self):
        while self.process and self.process.poll() is None:
            await asyncio.sleep(0.01)
        self.process = None


class ForkedKernel(AsyncKernelManager):
    def __init__(self, **options):
        super().__init__(**options)
        self.provisioner = Forked(kernel_spec=self.kernel_spec, parent=self)


# over 5 s: what the notebooks compute for a reader
@pytest.mark.parametrize(
    "kernel",
    [ForkedKernel, pytest.param(AsyncKernelManager, marks=pytest.mark.slow)],
    ids=["forked", "fresh"],
)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs_and_shows_what_is_stored(file, kernel, monkeypatch, tmp_path):
    """The same kinds of content in each cell; pictures of the same sizes, which look alike."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    stored, notebook = (nbformat.read(file, as_version=4) for _ in range(2))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources=where, kernel_manager_class=kernel
    ).execute()
    kinds = [
        {name: [set(data) - {"image/jpeg"} for data in found] for name, found in one.items()}
        for one in (shown(stored), shown(notebook))
    ]
    assert kinds[0] == kinds[1], ADVICE
    before, fresh = figures(stored), figures(notebook)
    for name, pixels in fresh.items():
        colours = pixels @ [1 << 16, 1 << 8, 1]  # one number for each is sorted 25 times as fast
        assert min(pixels.shape[:2]) > 150 and len(np.unique(colours)) > 100
        assert pixels.shape == before[name].shape, ADVICE
        assert np.abs(pixels.astype(int) - before[name]).mean() < 8, (name, ADVICE)
    assert len({pixels.tobytes() for pixels in fresh.values()}) == len(fresh)
    for cell in code_cells(notebook):
        assert not [output for output in cell.outputs if output.get("name") == "stderr"]
    check = {"colab": check_colab, "outlier_vis": check_outliers}[file.stem]
    check(shown(notebook), tmp_path)


def check_outliers(found: dict[str, list[Mapping]], folder: Path) -> None:
    tables = [data["text/markdown"] for name in ("overlap", "accuracy") for data in found[name]]
    assert len(tables) == 2 and "**SOM**" in tables[0] and "SFP" in tables[1]


def check_colab(found: dict[str, list[Mapping]], folder: Path) -> None:
    assert (
        "boat" in found["numbers"][0]["text"] and "% of the picture" in found["numbers"][0]["text"]
    )
    kept = {path.name for path in (folder / "result").iterdir()}
    assert kept == {"labels.png", "labels.csv", "masks.json", "overlay.jpg"}
    assert (folder / "result.zip").stat().st_size > 10_000
