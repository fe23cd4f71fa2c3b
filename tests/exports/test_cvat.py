"""CVAT's zip of masks: read as it is documented, and by Datumaro where it is installed."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from scene import result

from sfp import SFPError
from sfp.exports.cvat import write_cvat


@pytest.fixture
def file(tmp_path):
    pictures = [result().annotated(name, parts=True) for name in ("a.jpg", "in/b.jpg")]
    write_cvat(tmp_path / "cvat.zip", pictures)
    return tmp_path / "cvat.zip"


def test_its_masks(file):
    made = result()
    with zipfile.ZipFile(file) as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()
        names = archive.read("ImageSets/Segmentation/default.txt").decode().split()
        rows = [line.split(":") for line in lines[1:]]
        colours = {row[0]: tuple(map(int, row[1].split(","))) for row in rows}
        assert all(len(row) == 4 for row in rows) and names == ["a", "in/b"]
        assert list(colours) == ["background", "boat", "sea  deep", "house"]
        for name in names:
            kinds, objects = (
                np.asarray(Image.open(io.BytesIO(archive.read(f"Segmentation{kind}/{name}.png"))))
                for kind in ("Class", "Object")
            )
            expected = np.array(list(colours.values()), np.uint8)[made.labels]
            assert np.array_equal(kinds, expected)
            found = np.unique(objects.reshape(-1, 3), axis=0)
            assert len(found) == 1 + 5 and not (objects[made.labels == 0]).any()
            for colour in found[1:]:
                assert len(np.unique(made.labels[(objects == colour).all(-1)])) == 1


def test_datumaro(file, tmp_path):
    datumaro = pytest.importorskip("datumaro.components.dataset")
    zipfile.ZipFile(file).extractall(tmp_path / "set")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "set"), "voc_segmentation")
    items = {item.id: item.annotations for item in dataset}
    assert items.keys() == {"a", "in/b"}
    for masks in items.values():
        drawn = np.zeros((17, 23), int)
        for mask in masks:
            drawn[np.asarray(mask.image, bool)] = mask.label
        assert len(masks) == 5 and np.array_equal(drawn, result().labels)


def test_two_pictures_of_one_name(tmp_path):
    pictures = [result().annotated(name) for name in ("a.jpg", "a.png")]
    with pytest.raises(SFPError, match=r"a\.jpg and a\.png are one name in CVAT's format"):
        write_cvat(tmp_path / "cvat.zip", pictures)
    assert not list(tmp_path.iterdir())
