"""The notebook is kept without outputs and runs from top to bottom."""

from __future__ import annotations

import base64
import io
import os

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from PIL import Image

FILE = ROOT / "notebooks/outlier_vis.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(FILE, as_version=4)


def test_it_is_valid_and_has_no_outputs(notebook):
    nbformat.validate(notebook)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None and not cell.metadata
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


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


def test_it_runs_and_draws(notebook, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(FILE.parent)}},
    ).execute()
    outputs = {cell["id"]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    shown = {
        name: [output.data for output in found if "data" in output]
        for name, found in outputs.items()
    }
    figures = {
        name: data["image/png"]
        for name, found in shown.items()
        for data in found
        if "image/png" in data
    }
    expected = {
        "attention",
        "count",
        "who",
        "detectors",
        "patch",
        "repair-all",
        "features",
        "segmentation",
    }
    assert set(figures) == expected and len(set(figures.values())) == len(expected)
    for png in figures.values():
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
        assert min(pixels.shape[:2]) > 150 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    tables = [data["text/markdown"] for name in ("overlap", "accuracy") for data in shown[name]]
    assert len(tables) == 2 and "**SOM**" in tables[0] and "SFP" in tables[1]
    assert not [
        output for found in outputs.values() for output in found if output.get("name") == "stderr"
    ]
