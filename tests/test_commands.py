"""The real command lines, end to end, in their own processes.

One evaluation is by its script, in a fresh interpreter; the others start with their imports done.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from sfp.datasets import toyland
from sfp.result import palette_for

TEST = [sys.executable, str(ROOT / "tools/test.py")]
TOYLAND = str(ROOT / "configs/cfg_toyland.py")
FEW = "test_dataloader.dataset.scenes=6"


def run(command, cwd, code=0, timeout=240, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    return checked(done, code)


def run_forked(command, cwd, code=0, **environment) -> subprocess.CompletedProcess:
    """As ``run``, without the time of the imports."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return checked(forked.run(*command[1:], cwd=cwd, environment=environment), code)


def checked(done: subprocess.CompletedProcess, code: int) -> subprocess.CompletedProcess:
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def error_of(done: subprocess.CompletedProcess) -> str:
    """The one line of an error, without a traceback."""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data root with Toyland in it, shared by the runs."""
    root = tmp_path_factory.mktemp("data")
    toyland.write_split(root / "toyland", "val", 6)
    return root


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    """results.json of runs with different options; the last two have one work dir."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, work, options in (
        ("SFP", "SFP", []),
        ("again", "again", []),
        ("pm=L2", "again", ["model.pm=L2"]),
    ):
        arguments = ["--work-dir", work, "--cfg-options", FEW, *options]
        if name == "SFP":  # the script, from elsewhere, with the interpreter and config it finds
            command = ["sh", str(ROOT / "scripts/test.sh"), "--show-dir", "pictures", *arguments]
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = run(command, folder, SFP_DATA=str(data), PATH=path)
        else:
            done = run_forked([*TEST, TOYLAND, *arguments], folder, SFP_DATA=str(data))
        found[name] = json.loads((folder / work / "results.json").read_text())
        found[name]["stdout"], found[name]["stderr"], found[name]["folder"] = (
            done.stdout,
            done.stderr,
            folder,
        )
    return found


# over 5 s: its fixture runs the script, a fresh interpreter that imports torch and mmsegmentation
def test_the_output_ends_with_a_table_and_miou(results):
    result = results["SFP"]
    tail = result["stdout"]
    assert "|   sky    |" in tail and "| mushroom |" in tail
    last = tail.strip().splitlines()[-2]
    assert (
        last.startswith(f"mIoU {result['mIoU']:.2f}  aAcc {result['aAcc']:.2f}")
        and "results.json" in last
    )
    assert "evaluating: 100%" in result["stderr"]
    assert "OneDL" not in result["stdout"] + result["stderr"]


def test_results_json_says_what_was_measured(results):
    result = results["SFP"]
    assert (
        result["method"] == "SFP"
        and result["backbone"] == "Toyland"
        and result["dataset"] == "ToylandDataset"
    )
    assert (
        result["purify"] is True
        and result["pm"] == "SOM"
        and result["images"] == 6
        and result["prompts"] == 80
    )
    assert list(result["IoU_per_class"]) == list(toyland.CLASSES)
    present = [iou for iou in result["IoU_per_class"].values() if iou is not None]
    assert abs(result["mIoU"] - np.mean(present)) < 1e-6
    assert len(result["weights_sha256"]) == len(result["config_sha256"]) == 64
    assert result["protocol"]["window"] == 224 and result["protocol"]["stride"] == 112
    assert {"torch", "mmengine", "python"} <= set(result["versions"])
    assert (
        results["again"]["config_sha256"]
        == result["config_sha256"]
        != results["pm=L2"]["config_sha256"]
    )


def test_two_runs_are_equal(results):
    for key in ("mIoU", "aAcc", "mAcc", "IoU_per_class", "weights_sha256"):
        assert results["SFP"][key] == results["again"][key]


def test_options_change_the_result(results):
    assert results["pm=L2"]["mIoU"] != results["SFP"]["mIoU"] and results["pm=L2"]["pm"] == "L2"


def test_a_run_with_other_options_leaves_the_result_before_it(results):
    first, second = results["again"], results["pm=L2"]
    (kept,) = (first["folder"] / "again").glob("results_*.json")
    assert kept.name == f"results_SFP_{first['config_sha256'][:8]}.json"
    assert json.loads(kept.read_text())["mIoU"] == first["mIoU"]
    assert f"kept as again/{kept.name}" in second["stdout"] and "kept" not in first["stdout"]


def test_pictures_are_drawn_on_request(data, results):
    """The truth and the result, and below them the colours of the classes that occur alone."""
    pictures = sorted((results["SFP"]["folder"] / "pictures").glob("*.png"))
    assert len(pictures) == 6
    numbers, palette = set(), palette_for(toyland.CLASSES)
    for path in pictures:
        truth = np.asarray(Image.open(data / f"toyland/SegmentationClass/{path.name}"))
        drawn = np.asarray(Image.open(path))
        assert drawn.shape[0] > truth.shape[0] and drawn.shape[1] > 1.8 * truth.shape[1]
        below = drawn[truth.shape[0] + 20 :]
        keyed = {
            label for label, colour in enumerate(palette) if (below == colour).all(-1).sum() > 40
        }
        assert set(np.unique(truth)) <= keyed
        numbers.add(len(keyed))
    assert max(numbers) < len(toyland.CLASSES)


def test_miou_equals_a_count_by_hand(data, results):
    """From ``Segmenter``'s labels on the written files, with a plain confusion matrix."""
    import sfp

    segmenter = sfp.Segmenter("SFP", "Toyland", device="cpu")
    counts = np.zeros((16, 16), np.int64)
    for index in range(6):
        labels = np.asarray(
            Image.open(data / f"toyland/SegmentationClass/val_{index:05d}.png"), np.int64
        )
        found = segmenter(data / f"toyland/JPEGImages/val_{index:05d}.jpg", toyland.CLASSES).labels
        counts += np.bincount((labels * 16 + found).ravel(), minlength=256).reshape(16, 16)
    with np.errstate(invalid="ignore"):
        iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    assert (
        abs(100 * np.nanmean(iou) - results["SFP"]["mIoU"]) < 0.5
    )  # mmcv and torch round resized pixels apart


def test_a_second_start_encodes_no_text(data, tmp_path):
    code = (
        "import sys; from sfp.segmentor import SFPSegmentor; "
        f"s = SFPSegmentor('Toyland', 'toyland', "
        f"name_path={str(ROOT / 'configs/cls_toyland.txt')!r}, prompts='photo', "
        "text_cache=sys.argv[1]); "
        "print('encoded', s.frozen.text_tower.encoded)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    assert "encoded 16" in run_forked(command, tmp_path).stdout
    assert "encoded 0" in run_forked(command, tmp_path).stdout


class TestMistakes:
    """In processes of their own; tests/test_bad_input.py has the others."""

    def mistake(self, tmp_path, *arguments: str, **environment) -> str:
        return error_of(run_forked([*TEST, *arguments], tmp_path, code=2, **environment))

    def test_missing_data_root(self, tmp_path):
        message = self.mistake(tmp_path, str(ROOT / "configs/cfg_voc21.py"), SFP_DATA=str(tmp_path))
        assert "data root" in message and "VOC2012" in message and "SFP_DATA" in message

    def test_no_network(self, tmp_path, data):
        started = time.monotonic()
        weights = ["model.clip=ViT-B/16", "model.pretrained=openai"]
        environment = dict(SFP_DATA=str(data), HF_HUB_OFFLINE="", HF_ENDPOINT="http://127.0.0.1:9")
        # huggingface_hub reads these variables when it is imported: a fresh interpreter, over 5 s
        command = [*TEST, TOYLAND, "--cfg-options", FEW, *weights]
        message = error_of(run(command, tmp_path, code=2, **environment))
        assert (
            "there is no network" in message and "ViT-B-16.pt" in message and "Toyland" in message
        )
        assert time.monotonic() - started < 60  # the imports included


class TestSegment:
    TOOL = [sys.executable, str(ROOT / "tools/segment.py")]

    def test_photos_and_folders(self, data, tmp_path):
        folder = data / "toyland/JPEGImages"
        options = [
            "--method",
            "ProxyCLIP",
            "--options",
            "proxy=colour",
            "prob_thd=0.4",
            "--background",
            "rest",
        ]
        done = run_forked(
            [
                *self.TOOL,
                str(folder),
                "--names",
                "sky; sea, ocean; house",
                "--model",
                "Toyland",
                "--out",
                "out",
                *options,
            ],
            tmp_path,
        )
        assert (
            len(list((tmp_path / "out").glob("*_overlay.jpg")))
            == len(list((tmp_path / "out").glob("*_labels.png")))
            == 6
        )
        assert "val_00000.jpg: " in done.stdout + done.stderr

    def test_a_mistake(self, tmp_path):
        assert "no image file" in error_of(
            run(
                [*self.TOOL, "absent.jpg", "--names", "cat", "--model", "Toyland"], tmp_path, code=2
            )
        )


def test_a_machine_without_python_3_10(tmp_path):
    """Only a POSIX shell: one sentence, no half-made environment."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname", "cat", "cksum", "echo"):
        (tools / tool).symlink_to(shutil.which(tool))
    copy = tmp_path / "repository"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    for file in ("setup.py", "constraints.txt"):
        shutil.copy(ROOT / file, copy)
    done = run(["sh", str(copy / "scripts/test.sh")], tmp_path, code=1, PATH=str(tools))
    assert "error: no Python 3.10 or newer" in done.stderr and not (copy / ".venv").exists()
