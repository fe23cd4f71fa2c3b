"""``sfp verify`` from its command line: the steps, what it keeps, and a dress rehearsal of the first
machine that has datasets and published numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfp.__main__ import main
from sfp.datasets import toyland

# VOC's number of what Toyland shows, too
VOC = {"boat": 4, "car": 7}
ROWS = [  # method as Table 2 or Table 1 calls it, mIoU: all made up
    ("ClearCLIP", 99.0),
    ("SFP", 6.0),
    ("baseline (ClearCLIP)", 5.0),
    ("baseline+SOM", 5.5),
    ("baseline+SOM+SAE", 6.0),
    ("baseline+SOM+SAE+HAI", 6.5),
]


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    """Two of Toyland's scenes in VOC 2012's layout, background but for boats and cars."""
    root = tmp_path_factory.mktemp("rehearsal") / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    classes = np.array([VOC.get(name, 0) for name in toyland.CLASSES], np.uint8)
    names = []
    for index in (0, 3):
        scene, name = toyland.make_scene("tune", index), f"2007_{index:06d}"
        Image.fromarray(scene.image).save(root / f"JPEGImages/{name}.jpg")
        labels = Image.fromarray(classes[scene.labels], "P")
        labels.putpalette(list(range(256)) * 3)
        labels.save(root / f"SegmentationClass/{name}.png")
        names.append(name)
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("published") / "made_up.csv"
    lines = [f"made up,T1,{name},Toyland,voc21,mIoU,{value}" for name, value in ROWS]
    head = "paper,table,method,backbone,dataset,metric,value"
    file.write_text("\n".join([head, *lines]) + "\n")
    return file


def parts_of(out: Path) -> dict[tuple[str, str], dict]:
    found = json.loads((out / "verify.json").read_text())["parts"]
    return {(part["step"], part["name"]): part for part in found}


def run(out: Path, *arguments: object) -> tuple[int, dict[tuple[str, str], dict]]:
    code = main(["verify", "--out", str(out), *map(str, arguments)])
    return code, parts_of(out)


def test_dress_rehearsal_of_datasets_and_readings(voc, published, tmp_path, capsys):
    given = ["--model", "Toyland", "--data-root", f"voc21={voc}", "--published", published]
    given += ["--methods", "ClearCLIP", "SFP", "--datasets", "voc21"]
    given += ["--steps", "f", "g", "--questions", "12"]
    code, parts = run(tmp_path / "out", *given)
    said = capsys.readouterr().out
    assert code == 1 and "f. " in said and "ClearCLIP, voc21" in said
    off = parts["f", "ClearCLIP, voc21"]["finding"]
    assert off["verdict"] == "FAILED" and "99.00 by made up T1" in off["words"]
    assert "band 0.35" in off["words"] and "all 2 images" in off["words"]
    near = parts["f", "SFP, voc21"]["finding"]
    print(near, [v["finding"]["words"] for v in parts.values()])
    assert 0
