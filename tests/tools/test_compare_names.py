"""Names compared on the same images.

The official row is the evaluation's own, distractors can only take pixels away.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import ROOT

CONFIG = ROOT / "configs/cfg_toyland.py"


@pytest.fixture
def data(tmp_path):
    return [
        "--cfg-options",
        f"test_dataloader.dataset.data_root={tmp_path}/toyland",
        "test_dataloader.dataset.scenes=2",
    ]


def test_the_rows(tool, tmp_path, data):
    words = tmp_path / "words.txt"
    words.write_text("sky\nhorse\nchair\n")
    synonyms = (
        ROOT / "configs/cls_toyland_synonyms.txt"
    )  # as the official names: each class's first word is Toyland's own
    own, data = f"own={ROOT}/configs/cls_toyland.txt", [*data, f"model.name_path={synonyms}"]
    code, output, error = tool(
        "compare_names",
        CONFIG,
        "--methods",
        "ClearCLIP",
        "--names",
        own,
        "--distractors",
        words,
        *data,
    )
    assert code == 0, error
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in output.splitlines()
        if line.startswith("| ")
    ][2:]
    assert [row[0] for row in rows] == ["official", "plain", "own", "official + 2 distractors"]
    queries = synonyms.read_text().count(",") + 16
    assert [int(row[1]) for row in rows] == [queries, 16, 16, queries + 2]
    assert rows[1][1:] == rows[2][1:] and rows[1][2] != rows[0][2]
    assert float(rows[1][3]) == pytest.approx(
        float(rows[1][2]) - float(rows[0][2]), abs=0.11
    )  # of what is not rounded yet
    assert (
        "ClearCLIP, Toyland, 2 images of ToylandDataset" in output
        and rows[3][6].endswith(" %")
        and not rows[0][6]
    )
    code, evaluated, _ = tool(
        "test", CONFIG, "--work-dir", tmp_path / "work", *data, "model.method=ClearCLIP"
    )
    assert (
        code == 0
        and f"mIoU {float(rows[0][2]):.1f}" == re.search(r"mIoU \d+\.\d", _rounded(evaluated))[0]
    )


def _rounded(text: str) -> str:
    """The line of figures with one digit."""
    return re.sub(
        r"mIoU (\d+\.\d\d)", lambda found: f"mIoU {np.round(float(found[1]), 1):.1f}", text
    )
