"""Names compared on the same images: the official row is the evaluation's own, distractors can only take pixels away."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import ROOT

CONFIG = ROOT / "configs/cfg_toyland.py"


@pytest.fixture
def data(tmp_path):
    return ["--cfg-options", f"test_dataloader.dataset.data_root={tmp_path}/toyland", "test_dataloader.dataset.scenes=2"]


def test_the_rows(tool, tmp_path, data):
    words = tmp_path / "words.txt"
    words.write_text("sky\nhorse\nchair\n")
    names = f"synonyms={ROOT}/configs/cls_toyland_synonyms.txt"
    code, output, error = tool("compare_names", CONFIG, "--methods", "ClearCLIP", "--names", names, "--distractors", words, *data)
    assert code == 0, error
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["official", "synonyms", "official + 2 distractors"]
    words_of = (ROOT / "configs/cls_toyland_synonyms.txt").read_text()
    assert [int(row[1]) for row in rows] == [16, words_of.count(",") + 16, 18]
    assert "ClearCLIP, Toyland, 2 images of ToylandDataset" in output and rows[2][6].endswith(" %") and not rows[0][6]
    code, evaluated, _ = tool("test", CONFIG, "--work-dir", tmp_path / "work", *data, "model.method=ClearCLIP")
    assert code == 0 and f"mIoU {float(rows[0][2]):.1f}" == re.search(r"mIoU \d+\.\d", _rounded(evaluated))[0]


def _rounded(text: str) -> str:
    """The line of figures with one digit."""
    return re.sub(r"mIoU (\d+\.\d\d)", lambda found: f"mIoU {np.round(float(found[1]), 1):.1f}", text)
