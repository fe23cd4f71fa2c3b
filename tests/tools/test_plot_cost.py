"""Accuracy against cost: points from results.json, without shared and continued passes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT
from PIL import Image

# tab10's first two over white with opacity 0.55: no purification, SOM
COLOURS = ((132, 180, 214), (255, 184, 122))


def result(folder: Path, **changes) -> None:
    """A results.json as if measured."""
    made = dict(
        method="SFP", changed_options={}, pm=None, backbone="Toyland", dataset="ToylandDataset",
        precision="fp32", device="cpu", mIoU=50.0, aAcc=60.0, mAcc=55.0, seconds=6.0, images=120,
        images_resumed=0, shared_with=[],
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({**made, **changes}))


def test_the_points(tool, tmp_path):
    result(tmp_path / "grid/a", pm="SOM", changed_options=dict(hai=False, pm="SOM"))
    result(tmp_path / "grid/b", method="CLIP", seconds=3.0, mIoU=5.0)
    result(tmp_path / "grid/c", method="SCLIP", shared_with=["voc20"])
    result(tmp_path / "grid/d", method="GEM", images_resumed=100, seconds=1.0)
    code, output, error = tool(
        "plot_cost",
        tmp_path / "grid",
        "--out",
        tmp_path / "cost.png",
        "--csv",
        tmp_path / "cost.csv",
    )
    assert code == 0, error
    lines = output.splitlines()
    assert len(lines) == 2 and lines[0].endswith(
        "25.0 ms    5.0 mIoU  CLIP (no purification), Toyland, ToylandDataset, fp32 on cpu"
    )
    assert "50.0 ms   50.0 mIoU  SFP, hai=False (SOM)" in lines[1]
    points = list(csv.DictReader((tmp_path / "cost.csv").open()))
    assert [(p["method"], p["milliseconds"]) for p in points] == [
        ("CLIP", "25.00"),
        ("SFP, hai=False", "50.00"),
    ]
    drawn = np.asarray(Image.open(tmp_path / "cost.png").convert("RGB"), int)
    blue, orange = ((np.abs(drawn - colour) < 30).all(-1).sum() for colour in COLOURS)
    assert blue > 100 and orange > 100  # a circle and a legend's entry for each detector
    again = [tmp_path / "cost.csv", "--out", tmp_path / "again.png"]
    assert tool("plot_cost", *again)[0] == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "cost.png").read_bytes()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    code, _, error = tool("plot_cost", tmp_path / "other.csv", "--out", tmp_path / "x.png")
    assert code == 2 and "other.csv is no CSV of this program" in error


def test_names_cover_no_point_and_no_other_name():
    """Thirty points in a cloud: every name finds a free place."""
    from matplotlib.figure import Figure

    sys.path.append(str(ROOT / "tools"))
    from plot_cost import Point, name_points

    rng = np.random.default_rng(0)
    values = rng.uniform((100, 20), (300, 60), (30, 2))
    points = [Point(f"Method{i}", "", "", miou, time) for i, (time, miou) in enumerate(values)]
    figure = Figure(figsize=(11, 6.5))
    axis = figure.subplots()
    for point in points:
        axis.plot(point.milliseconds, point.miou, "o")
    figure.draw_without_rendering()
    name_points(axis, points)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == [point.method for point in points]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.overlaps(b) for a, b in pairs)
