"""Label Studio's tasks: read as its packing is defined, and by its own SDK where it is there."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import NAMES, result

from sfp.exports.instances import find_instances
from sfp.exports.label_studio import brush_mask, label_studio_interface, label_studio_tasks


def unpacked(packed: list[int]) -> np.ndarray:
    """rle-pack, bit by bit."""
    bits, place = "".join(f"{byte:08b}" for byte in packed), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, width = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < number:
        same = read(1)
        count = read(sizes[read(2)]) + 1
        values += [read(width)] * count if same else [read(width) for _ in range(count)]
    assert len(values) == number and len(bits) - place < 8
    return np.array(values)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_brush_masks(height, width, data):
    labels = np.zeros((height, width), int)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    labels[top:, left:] = 1
    labels[-1, 0] = 1
    (*_, last) = find_instances(labels)
    pixels = unpacked(brush_mask(last, labels.shape)).reshape(height, width, 4)
    assert np.array_equal(pixels, np.repeat(255 * (labels[..., None] == last.label), 4, 2))


def test_a_run_longer_than_its_packing_allows():
    labels = np.zeros((300, 200), int)
    labels[-1] = 1
    background, _ = find_instances(labels)
    pixels = unpacked(brush_mask(background, labels.shape))  # 59,800 pixels of four bytes
    assert np.array_equal(pixels[::4] > 0, labels.ravel() == 0)


def made() -> tuple[list[dict], str]:
    pictures = [result().annotated(name, parts=True) for name in ("a.jpg", "in/b.jpg")]
    colours = pictures[0].palette[1:].tolist()
    tasks = json.loads(json.dumps(label_studio_tasks(pictures, "sfp 0.1.0, SFP, Toyland")))
    return tasks, label_studio_interface(NAMES[1:], colours)


def test_tasks_and_interface_fit_each_other():
    tasks, interface = made()
    view = ElementTree.fromstring(interface)
    assert [label.get("value") for label in view.iter("Label")] == list(NAMES[1:])
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=a.jpg", "/data/local-files/?d=in/b.jpg",
    ]  # fmt: skip
    for task in tasks:
        (prediction,) = task["predictions"]
        drawn = np.zeros((17, 23), int)
        for region in prediction["result"]:
            assert view.find(f".//*[@name='{region['from_name']}']").tag == "BrushLabels"
            assert view.find(f".//*[@name='{region['to_name']}']").tag == "Image"
            (name,) = region["value"]["brushlabels"]
            pixels = unpacked(region["value"]["rle"]).reshape(17, 23, 4)
            drawn[pixels[..., 3] > 0] = NAMES.index(name)
            assert 0 < region["score"] < 1
        assert np.array_equal(drawn, result().labels) and 0 < prediction["score"] < 1


def test_by_its_own_sdk():
    sdk = pytest.importorskip("label_studio_sdk.label_interface")
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    tasks, interface = made()
    reader = sdk.LabelInterface(interface)
    for task in tasks:
        (prediction,) = task["predictions"]
        assert reader.validate_prediction(prediction, return_errors=True) == []
        for region in prediction["result"]:
            packed = region["value"]["rle"]
            assert np.array_equal(brush.decode_rle(packed), unpacked(packed))
