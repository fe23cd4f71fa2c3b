"""Each dataset from its owners' files to an mIoU, which a plain count confirms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from owners import SHIPPED

from sfp.datasets.layouts import LAYOUTS


def counted_by_hand(layout, labels: np.ndarray, prediction: np.ndarray, table: np.ndarray) -> None:
    """Add each pixel to a confusion table (K, K), one after the other."""
    for truth, found in zip(labels.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if truth == layout.ignore or (layout.reduce_zero and truth == 0):
            continue
        table[truth - layout.reduce_zero, found] += 1


@pytest.mark.parametrize("name", SHIPPED)
def test_miou_of_a_prepared_tree(name, tmp_path, tool, monkeypatch):
    from mmseg.registry import MODELS

    from sfp.evaluation.dataset import build_dataset
    from sfp.evaluation.grid import Cell, run_group

    shipped, layout = SHIPPED[name](tmp_path / "owners"), LAYOUTS[name]
    assert (
        tool(
            "prepare_dataset",
            name,
            "--source",
            *shipped.sources,
            "--out",
            tmp_path / "data",
            "--workers",
            1,
        )[0]
        == 0
    )
    assert (
        tool("check_dataset", name, "--data", tmp_path / "data", "--subset", "--workers", 1)[0] == 0
    )
    monkeypatch.setenv("SFP_DATA", str(tmp_path / "data"))
    cell = Cell(
        "ClearCLIP",
        "Toyland",
        name,
        ("settings=common", "model.prompts=photo", "short_side=112"),
        str(tmp_path / "grid"),
    )
    run_group([cell], workers=0)
    result = json.loads((cell.folder / "results.json").read_text())

    cfg = cell.config()
    dataset, model = build_dataset(cfg), MODELS.build(cfg.model)
    table = np.zeros((layout.classes, layout.classes), np.int64)
    for index in range(len(dataset)):
        item = dataset[index]
        (sample,) = model.test_step(
            dict(inputs=[item["inputs"]], data_samples=[item["data_samples"]])
        )
        image = next(
            key for key in shipped.labels if sample.img_path.endswith(f"{key}{layout.image_suffix}")
        )
        counted_by_hand(layout, shipped.labels[image], sample.pred_sem_seg.data[0].numpy(), table)
    right = np.diag(table)
    with np.errstate(invalid="ignore"):
        iou = right / (table.sum(0) + table.sum(1) - right)
    assert result["images"] == len(dataset) >= 2 and table.sum() > 0
    assert result["mIoU"] == pytest.approx(100 * np.nanmean(iou), rel=1e-9)
    assert result["mIoU_present"] == pytest.approx(100 * np.mean(iou[table.sum(1) > 0]), rel=1e-9)
    assert result["aAcc"] == pytest.approx(100 * right.sum() / table.sum(), rel=1e-9)
