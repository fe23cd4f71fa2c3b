"""``sfp verify`` from its command line: the steps, what it keeps, and a dress rehearsal of the
first machine that has datasets and published numbers.
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
    ("SFP", 38.5),
    ("baseline (ClearCLIP)", 22.5),
    ("baseline+SOM", 22.6),
    ("baseline+SOM+SAE", 38.6),
    ("baseline+SOM+SAE+HAI", 38.4),
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


def words_of(parts: dict, step: str, name: str, verdict: str) -> str:
    finding = parts[step, name]["finding"]
    assert finding["verdict"] == verdict, finding
    return finding["words"]


# over 5 s: two methods are evaluated and read in every way, and once more in part
def test_dress_rehearsal_of_datasets_and_readings(voc, published, tmp_path, capsys):
    given = ["--model", "Toyland", "--data-root", f"voc21={voc}", "--published", published]
    given += ["--datasets", "voc21", "--questions", "12"]
    both = ["--methods", "ClearCLIP", "SFP", "--steps", "f", "g"]
    code, parts = run(tmp_path / "out", *given, *both)
    said = capsys.readouterr().out
    assert code == 1 and "\nf. methods on the datasets" in said
    off = words_of(parts, "f", "ClearCLIP, voc21", "FAILED")
    assert "all 2 images, 99.00 by made up T1" in off and "band 0.35;" in off
    assert "band 1;" in words_of(parts, "f", "SFP, voc21", "ok")  # read from its paper
    assert "Table 2 has 22.5" in words_of(parts, "g", "ClearCLIP, voc21", "ok")
    proposal = parts["g", "proposal"]["finding"]
    errors = proposal["figures"]["errors"]
    assert set(errors) == {"as read here", "12: class token in HAI"} and max(errors.values()) < 1
    nearest = min(errors, key=errors.get)
    assert (nearest if nearest != "as read here" else "keep the default") in proposal["words"]
    page = (tmp_path / "out/verified.md").read_text()
    assert "| 12: class token in HAI | `hai_cls=True` |" in page and "**FAILED**" in page

    again = run(tmp_path / "out", *given, *both)
    assert again == (code, parts) and "ok (kept)" in capsys.readouterr().out

    one = ["--methods", "ClearCLIP", "--steps", "f", "--images-each", "1"]
    _, changed = run(tmp_path / "out", *given, *one)
    off = words_of(changed, "f", "ClearCLIP, voc21", "FAILED")
    assert "on 1 of 2 images" in off and "band 0.35 widened to" in off
    assert ("f", "SFP, voc21") not in changed  # not asked for, so not of this report
    assert changed["g", "proposal"] == parts["g", "proposal"]  # that step was not done anew


def test_interrupted_then_continued(tmp_path, monkeypatch, capsys):
    from sfp.verification import weights

    def interrupted(session):
        raise KeyboardInterrupt

    given = ["--model", "Toyland", "--steps", "a", "b"]
    monkeypatch.setattr(weights, "words", interrupted)
    code, parts = run(tmp_path, *given)
    assert code == 130 and ("b", "words against open_clip") not in parts
    monkeypatch.undo()
    assert run(tmp_path, *given)[0] == 0
    done = parts_of(tmp_path)
    assert done["b", "weights"] == parts["b", "weights"]
    assert done["b", "words against open_clip"]["finding"]["verdict"] == "ok"
    said = capsys.readouterr().out
    assert said.count("ok (kept)") == sum(p["finding"]["verdict"] == "ok" for p in parts.values())


def test_without_time_everything_is_left_out(tmp_path):
    given = ["--model", "Toyland", "--methods", "SFP", "--minutes", "1e-9"]
    code, parts = run(tmp_path, *given)
    verdicts = {part["finding"]["verdict"] for part in parts.values()}
    assert code == 0 and verdicts == {"left out"}
    assert {step for step, _ in parts} == set("abcdefg")
    assert "no time left of 1e-09 minutes" in (tmp_path / "verified.md").read_text()


def test_devices_and_speed_on_a_cpu(tmp_path):
    given = ["--model", "Toyland", "--methods", "SC-CLIP", "--steps", "d", "e", "--device", "cpu"]
    code, parts = run(tmp_path, *given)
    assert code == 0
    assert "of labels are the CPU's in fp32" in words_of(parts, "d", "SC-CLIP, cpu bf16", "ok")
    assert words_of(parts, "e", "host waits a picture", "not possible here") == "no GPU"
    forward = parts["e", "over open_clip, cpu fp32"]["finding"]["figures"]["SC-CLIP"]
    assert forward["ratio"] > 0 and forward["windows_per_s"] > 0


def test_weights_that_no_paper_used(tmp_path, voc):
    """Datasets aren't measured for nothing."""
    given = ["--model", "Toyland", "--data-root", f"voc21={voc}", "--datasets", "voc21"]
    code, parts = run(tmp_path, *given, "--steps", "f", "g")
    assert code == 0 and len(parts) == 2
    why = words_of(parts, "f", "published numbers", "not possible here")
    assert "no paper prints numbers of Toyland" in why and "--published" in why
    assert "Table 2 is of OpenAI's" in words_of(parts, "g", "readings", "not possible here")
