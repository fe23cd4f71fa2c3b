"""COCO's JSON: read by pycocotools and supervision, and by FiftyOne where it is installed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scene import NAMES, result

from sfp.exports.coco import coco_dataset


@pytest.fixture
def folder(tmp_path):
    """Two pictures, and a file of both with an annotation for each part."""
    made = result()
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(made.image).save(tmp_path / name)
    pictures = [made.annotated(name, parts=True) for name in ("a.jpg", "b.jpg")]
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(coco_dataset(pictures, made.protocol)))
    return tmp_path


def test_pycocotools(folder, capsys):
    coco, made = COCO(folder / "coco.json"), result()
    assert coco.loadCats(coco.getCatIds()) == [
        {"id": place, "name": name, "supercategory": ""} for place, name in enumerate(NAMES[1:], 1)
    ]
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.jpg", "b.jpg"]
    ids = coco.getAnnIds()
    assert ids == list(range(1, len(ids) + 1))
    for image in coco.getImgIds():
        annotations = coco.loadAnns(coco.getAnnIds([image]))
        labels = np.zeros(made.labels.shape, int)
        for each in annotations:
            mask = coco.annToMask(each).astype(bool)
            assert mask.sum() == each["area"] and not labels[mask].any()
            assert each["score"] == pytest.approx(made.confidence[mask].mean(), abs=1e-4)
            x, y, width, height = each["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            labels[mask] = each["category_id"]
        assert np.array_equal(labels, made.labels)
        assert [each["category_id"] for each in annotations] == [1, 2, 2, 2, 2]
    results = coco.loadRes(coco.dataset["annotations"])  # as a detector's results
    assert len(results.anns) == len(ids)
    capsys.readouterr()


def test_without_a_background_the_first_name_is_category_1():
    coco = result(background=False).to_coco("a.jpg")
    assert coco["categories"][0] == {"id": 1, "name": "sky", "supercategory": ""}
    assert [each["category_id"] for each in coco["annotations"]] == [1, 2, 3]


def test_supervision(folder):
    supervision = pytest.importorskip("supervision")
    found = supervision.DetectionDataset.from_coco(str(folder), str(folder / "coco.json"), True)
    assert found.classes == list(NAMES[1:]) and len(found) == 2
    for _, _, detections in found:
        made = result().to_supervision(parts=True)
        assert len(detections) == len(made) == 5
        assert np.array_equal(detections.mask, made.mask)
        assert np.array_equal(detections.class_id + 1, made.class_id)


def test_fiftyone(folder):
    """Its reader; its datasets need a MongoDB."""
    coco = pytest.importorskip("fiftyone.utils.coco")
    file = str(folder / "coco.json")
    _, classes, _, images, annotations = coco.load_coco_detection_annotations(file)
    assert classes == dict(enumerate(NAMES[1:], 1)) and images[2]["file_name"] == "b.jpg"
    labels = result().labels
    for each in annotations[1]:
        detection = each.to_detection(labels.shape[::-1], classes, load_segmentation=True)
        assert detection.label in NAMES and detection.mask.sum() == each.area


def test_cvat_reads_it(folder):
    """CVAT's "COCO 1.0" is read by Datumaro."""
    datumaro = pytest.importorskip("datumaro.components.dataset")
    (folder / "set/images/default").mkdir(parents=True)
    (folder / "set/annotations").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).rename(folder / f"set/images/default/{name}")
    (folder / "coco.json").rename(folder / "set/annotations/instances_default.json")
    items = list(datumaro.Dataset.import_from(str(folder / "set"), "coco_instances"))
    assert {item.id for item in items} == {"a", "b"}
    labels = result().labels
    for item in items:
        masks = [each for each in item.annotations if each.type.name == "mask"]
        drawn = np.zeros(labels.shape, int)
        for each in masks:
            drawn[np.asarray(each.image, bool)] = each.label + 1
        assert len(masks) == 5 and np.array_equal(drawn, labels)
