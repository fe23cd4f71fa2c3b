"""The grid.

What shares a pass, what is skipped, what fails alone; and the papers' table made of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from sfp.clip.built_in import BUILT_IN
from sfp.clip.prompts import IMAGENET_PROMPTS, prompts_sha256
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.evaluation import grid
from sfp.evaluation.config import CONFIGS, read_config
from sfp.evaluation.grid import Cell, load_group, plan, run_group, save_group
from sfp.evaluation.provenance import dataset_fingerprint, weight_files
from sfp.evaluation.published import NOT_RUN, find_published
from sfp.evaluation.tables import (
    COLUMNS,
    Entry,
    as_csv,
    collect,
    latex,
    markdown,
    peers,
    peers_table,
)
from sfp.methods import list_methods
from sfp.pipeline import Vocabulary

NAN = float("nan")
FIGURES = ("mIoU", "aAcc", "mAcc", "mIoU_present", "IoU_per_class")


def write_voc(root: Path, count: int = 4) -> None:
    """A small VOC 2012 tree: Toyland scenes with labels in VOC's range, some pixels ignored."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        scene = toyland.make_scene("tune", i)
        labels = (scene.labels.astype(int) + i) % 21
        labels[:20] = 255
        Image.fromarray(scene.image[:300, :340]).save(root / f"JPEGImages/2007_{i:06d}.jpg")
        picture = Image.fromarray(labels[:300, :340].astype(np.uint8), "P")
        picture.putpalette(list(range(256)) * 3)
        picture.save(root / f"SegmentationClass/2007_{i:06d}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text(
        "".join(f"2007_{i:06d}\n" for i in range(count))
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid_data")
    write_voc(root / "VOCdevkit/VOC2012")
    toyland.write_split(root / "toyland", "val", 3)
    before = os.environ.get("SFP_DATA")
    os.environ["SFP_DATA"] = str(root)
    yield root
    os.environ.pop("SFP_DATA")
    if before is not None:
        os.environ["SFP_DATA"] = before


def cells(
    out: Path, methods=("SC-CLIP",), datasets=("voc20", "voc21"), *overrides: str
) -> list[Cell]:
    return [
        Cell(method, "Toyland", dataset, overrides, str(out))
        for method in methods
        for dataset in datasets
    ]


def figures(cell: Cell) -> dict:
    result = json.loads((cell.folder / "results.json").read_text())
    return {key: result[key] for key in FIGURES}


@pytest.fixture(scope="module")
def separate(data, tmp_path_factory):
    """voc20 and voc21 each in its own pass."""
    both = cells(tmp_path_factory.mktemp("separate"))
    for cell in both:
        run_group([cell], workers=0)
    return both


def test_one_pass_for_datasets_with_the_same_images_gives_the_same_figures(
    separate, data, tmp_path
):
    both = cells(tmp_path)
    groups, finished, failed = plan(both)
    assert groups == [both] and not finished and not failed
    run_group(both, workers=0)
    for ours, theirs in zip(both, separate, strict=True):
        assert figures(ours) == figures(theirs)
    assert json.loads((both[0].folder / "results.json").read_text())["shared_with"] == ["voc21"]


@pytest.mark.parametrize(
    "method",
    ["CLIPSurgery:feature_surgery=True", "CLIPtrase:cluster_vote=mean", "ProxyCLIP:proxy=colour"],
)
def test_methods_that_look_at_the_text_share_a_pass_too(method, data, tmp_path):
    shared, alone = cells(tmp_path / "shared", [method]), cells(tmp_path / "alone", [method])
    groups, _, _ = plan(shared)
    assert sorted(map(len, groups)) == (
        [1, 1] if "CLIPtrase" in method else [2]
    )  # its own settings differ by class scores on VOC20
    run_group(shared[:1] if len(groups) == 2 else shared, workers=0)
    run_group(alone[:1], workers=0)
    assert figures(shared[0]) == figures(alone[0])


def test_replaced_weights_are_not_finished_and_labels_are_read_once(data, tmp_path, monkeypatch):
    """One path with other weights is measured again; a dataset of several cells is read once."""
    weights = tmp_path / "weights.safetensors"
    tensors = load_file(BUILT_IN["Toyland"])
    save_file(tensors, weights, {"quick_gelu": "true"})
    overrides = ("model.head_width=64", "test_dataloader.dataset.scenes=1")
    both = [
        Cell(method, f"ViT-B/16:{weights}", "toyland", overrides, str(tmp_path / "grid"))
        for method in ("CLIP", "ClearCLIP")
    ]
    for cell in both:
        run_group([cell], workers=0)
    calls = []
    monkeypatch.setattr(
        grid,
        "dataset_fingerprint",
        lambda dataset, *files: calls.append(files) or dataset_fingerprint(dataset, *files),
    )
    assert plan(both)[1] == both and len(calls) == 2  # images and labels, images alone
    save_file({k: 1.01 * v for k, v in tensors.items()}, weights, {"quick_gelu": "true"})
    os.utime(weights, ns=(1, 1))
    assert plan(both)[1] == []


def hub_file(folder: Path, repository: str, name: str, content: bytes) -> Path:
    """A file as Hugging Face's cache keeps it."""
    root = folder / f"models--{repository.replace('/', '--')}"
    (root / "snapshots/1").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs/main").write_text("1")
    (root / "snapshots/1" / name).write_bytes(content)
    return root / "snapshots/1" / name


DINO = "timm/vit_base_patch8_224.dino"
OPENAI = "timm/vit_base_patch16_clip_224.openai"


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("file", ["model.pretrained={file}"]),
        ("file under the key weights", ["model.weights={file}"]),
        ("file without an ending", ["model.pretrained={bare}"]),
        ("file of another ending", ["model.pretrained={ckpt}"]),
        ("built-in", []),
        ("tag in the hub's cache", ["model.clip=ViT-B/16", "model.pretrained=openai"]),
        ("proxy's file", ["model.method=ProxyCLIP", "model.proxy_weights={file}"]),
        (
            "proxy's file without an ending",
            ["model.method=ProxyCLIP", "model.proxy_weights={bare}"],
        ),
        ("proxy in the hub's cache", ["model.method=ProxyCLIP", f"model.proxy={DINO[5:]}"]),
    ],
)
def test_replaced_weights_of_every_kind_are_noticed(what, options, tmp_path, monkeypatch):
    """Whatever the figures depend on: the CLIP's and a second model's, by path, tag or built in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    places = dict(file=tmp_path / "a.pt", bare=tmp_path / "weights", ckpt=tmp_path / "a.ckpt")
    monkeypatch.setitem(BUILT_IN, "Toyland", tmp_path / "built_in.safetensors")

    def write(content: bytes) -> None:
        for place in (*places.values(), BUILT_IN["Toyland"]):
            place.write_bytes(content)
        for repository in (DINO, OPENAI):
            for name in ("model.safetensors", "open_clip_model.safetensors"):
                hub_file(tmp_path / "hub", repository, name, content)

    write(b"one")
    given = [option.format(**places) for option in options]
    cfg = read_config(CONFIGS / "cfg_toyland.py", given)
    before = weight_files(cfg)
    key = "proxy" if "proxy" in what else "clip"
    assert before[key] == hashlib.sha256(b"one").hexdigest()
    write(b"another")
    assert weight_files(cfg)[key] == hashlib.sha256(b"another").hexdigest()


def test_weights_that_are_no_longer_here_count_as_they_were(data, tmp_path, monkeypatch):
    """A cleared download cache makes no finished cell unfinished; another built-in file does."""
    cell = Cell("CLIP", "Toyland", "toyland", ("test_dataloader.dataset.scenes=1",), str(tmp_path))
    run_group([cell], workers=0)
    assert plan([cell])[1] == [cell]
    result = json.loads((cell.folder / "results.json").read_text())
    assert result["quick_gelu"] is True and len(result["pixel_mean"]) == 3
    monkeypatch.setitem(BUILT_IN, "Toyland", tmp_path / "made_anew.safetensors")
    monkeypatch.setattr("sfp.evaluation.provenance.weights_file", lambda *_: None)
    assert plan([cell])[1] == [cell]
    monkeypatch.undo()
    os.environ["SFP_DATA"] = str(data)
    monkeypatch.setitem(BUILT_IN, "Toyland", tmp_path / "made_anew.safetensors")
    (tmp_path / "made_anew.safetensors").write_bytes(b"another")
    assert plan([cell])[1] == []


def test_a_file_that_says_another_activation_is_measured_again(data, tmp_path):
    """The tensors, and so their hash, are the same."""
    weights = tmp_path / "weights.safetensors"
    overrides = ("model.head_width=64", "test_dataloader.dataset.scenes=1")
    cell = Cell("CLIP", f"ViT-B/16:{weights}", "toyland", overrides, str(tmp_path / "grid"))
    tensors = load_file(BUILT_IN["Toyland"])
    found = []
    for quick_gelu in ("true", "false"):
        save_file(tensors, weights, {"quick_gelu": quick_gelu})
        run_group([cell], workers=0)
        found.append(json.loads((cell.folder / "results.json").read_text()))
    assert found[0]["weights_sha256"] == found[1]["weights_sha256"]
    assert found[0]["mIoU"] != found[1]["mIoU"]
    assert [result["quick_gelu"] for result in found] == [True, False]


def test_what_differs_in_the_vision_is_not_shared(data, tmp_path):
    groups, _, _ = plan(cells(tmp_path, ["SFP", "SC-CLIP"]))
    assert sorted(map(len, groups)) == [2, 2]
    groups, _, _ = plan(
        [
            *cells(tmp_path, ["SFP"], ["voc20"]),
            *cells(tmp_path, ["SFP"], ["voc21"], "short_side=300"),
        ]
    )
    assert sorted(map(len, groups)) == [1, 1]
    groups, _, _ = plan(cells(tmp_path, ["SFP"]), share=False)
    assert sorted(map(len, groups)) == [1, 1]


def test_finished_cells_are_skipped_until_something_changes(separate, data):
    groups, finished, _ = plan(separate)
    assert groups == [] and finished == list(separate)
    path = separate[0].folder / "results.json"
    result = json.loads(path.read_text())
    for key in ("config_sha256", "dataset_fingerprint", "code_sha256"):
        path.write_text(json.dumps({**result, key: "another"}))
        assert plan(separate)[0] == [[separate[0]]]
    path.write_text(json.dumps(result))


def test_an_interrupted_pass_does_only_what_is_left(separate, data, tmp_path):
    """Half of voc20's images are done, none of voc21's: the figures are those of a whole pass."""

    both = cells(tmp_path)
    missing = data / "VOCdevkit/VOC2012/JPEGImages/2007_000003.jpg"
    kept = missing.read_bytes()
    missing.write_bytes(
        kept[: len(kept) // 2] + b"\0" * (len(kept) - len(kept) // 2)
    )  # as long, but broken
    try:
        with pytest.raises(SFPError, match=r"2007_000003\.jpg can't be read"):
            run_group(both[:1], workers=0)
    finally:
        missing.write_bytes(kept)
    lines = (both[0].folder / "counts/rank0.jsonl").read_text().splitlines()
    assert len(lines) == 3 and not (both[0].folder / "results.json").exists()
    run_group(both, workers=0)
    assert [figures(cell) for cell in both] == [figures(cell) for cell in separate]
    assert not (both[0].folder / "counts").exists()


def test_cells_that_can_not_start_are_named(data, tmp_path):
    bad = [
        *cells(tmp_path, ["SPF"], ["voc21"]),
        *cells(tmp_path, ["SFP"], ["voc2"]),
        *cells(tmp_path, ["SFP"], ["ade20k"]),
    ]
    groups, _, failed = plan([*bad, *cells(tmp_path, ["SFP"], ["voc21"])])
    assert len(groups) == 1 and list(failed) == bad
    (cell,) = cells(tmp_path, ["SFP"], ["voc21"], "test_dataloader.dataset.scenes=3")
    assert "cfg_voc21.py can't be built" in plan([cell])[2][cell]
    assert [
        words in failed[cell]
        for cell, words in zip(bad, ("did you mean 'SFP'", "cfg_voc2", "data root"), strict=True)
    ] == [True] * 3


def test_groups_are_saved_and_loaded(tmp_path):
    both = cells(tmp_path, ["SFP:pm=L2,purify_layers=[3,4]"], ["voc20"], "settings=common")
    save_group(both, tmp_path / "logs/group.json")
    assert load_group(tmp_path / "logs/group.json") == both
    assert both[0].folder.name == "voc20" and ":" not in str(both[0].folder)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    """A pass that two datasets share and one of them spoils, a cell with a wrong option, and the
    same command again.
    """
    for folder in ("images", "annotations"):
        (tmp_path / f"data/coco_stuff164k/{folder}/val2017").mkdir(parents=True)
    for i in range(2):
        scene, name = toyland.make_scene("tune", i), f"{i:012d}"
        Image.fromarray(scene.image).save(
            tmp_path / f"data/coco_stuff164k/images/val2017/{name}.jpg"
        )
        for suffix in ("_instanceTrainIds.png", "_labelTrainIds.png"):
            Image.fromarray(scene.labels).save(
                tmp_path / f"data/coco_stuff164k/annotations/val2017/{name}{suffix}"
            )
    spoilt = tmp_path / f"data/coco_stuff164k/annotations/val2017/{1:012d}_labelTrainIds.png"
    labels = np.array(Image.open(spoilt))
    labels[7, 7] = 200
    Image.fromarray(labels).save(spoilt)
    command = [
        sys.executable,
        str(ROOT / "tools/benchmark.py"),
        "--methods",
        "CLIP",
        "SFP:sae_lambda=-x",
        "--datasets",
        "coco_object",
    ]
    command += [
        "coco_stuff164k",
        "--backbones",
        "Toyland",
        "--out",
        "grid",
        "--devices",
        "cpu",
        "--settings",
        "common",
    ]
    command += ["--cfg-options", "model.prompts=photo"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SFP_DATA": str(tmp_path / "data"),
    }

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    first = run()
    assert first.returncode == 1, first.stderr[-2000:]
    assert "4 cells: 0 finished, 2 to do in 1 passes (1 share one), 2 can't start" in first.stdout
    assert (
        "apart after a failure: CLIP / Toyland / coco_object, CLIP / Toyland / coco_stuff164k"
        in first.stdout
    )
    assert (
        "failed: SFP:sae_lambda=-x / Toyland / coco_object: sae_lambda of method SFP is '-x'"
        in first.stderr
    )
    assert f"{spoilt.name} has the label 200, but there are 171 classes" in first.stderr
    assert (
        first.stdout.count("| CLIP | Toyland |") == 1
        and "| method | backbone | Object |" in first.stdout
    )
    Image.fromarray(np.where(labels == 200, 5, labels).astype(np.uint8)).save(spoilt)
    assert "had another dataset; start it afresh with --fresh" in run().stderr
    again = run("--fresh")
    assert (
        "4 cells: 1 finished, 1 to do" in again.stdout
        and "| method | backbone | Object | Stuff |" in again.stdout
    )
    table = [sys.executable, str(ROOT / "tools/make_table.py"), "grid"]
    done = subprocess.run(
        table, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("| method | backbone | Object | Stuff |")
    empty = subprocess.run(
        [*table[:2], str(tmp_path / "none")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert empty.returncode == 2 and "error: There is no results.json" in empty.stderr


SLOW = "ClearCLIP:purify=True,pm=IsolationForest,purify_layers=[8,9,10,11]"


@pytest.mark.slow
def test_a_killed_benchmark_leaves_no_worker_and_is_continued(data, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools/benchmark.py"),
        "--methods",
        SLOW,
        "--datasets",
        "toyland",
        "--out",
        "grid",
    ]
    command += ["--cfg-options", "test_dataloader.dataset.scenes=4", "--devices", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = Cell(SLOW, "Toyland", "toyland", (), str(tmp_path / "grid")).folder
    while not list(folder.glob("counts/rank0.jsonl")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(1.5)  # the worker looks for its parent twice a second
    lines = (folder / "counts/rank0.jsonl").read_bytes()
    time.sleep(0.7)
    assert (folder / "counts/rank0.jsonl").read_bytes() == lines
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((folder / "results.json").read_text())["images"] == 4


def protocol(**changes) -> dict:
    """SFP's on VOC21."""
    usual = dict(
        window=224, stride=112, logit_scale=50, prob_thd=0.15, area_thd=0.1, refine=[],
        pamr_iterations=0, pamr_dilations=[8, 16], short_side=336, sigmoid=False,
    )  # fmt: skip
    return usual | changes


def words_of(file: str) -> list[list[str]]:
    return Vocabulary.from_file(ROOT / f"configs/cls_{file}.txt").words


VOC20 = dict(
    dataset="PascalVOC20Dataset", names=words_of("voc20_plain"),
    protocol=protocol(logit_scale=40, prob_thd=0.0, area_thd=None),
)  # fmt: skip
CITY = dict(
    dataset="CityscapesDataset", names=words_of("city_scapes"), images=500,
    protocol=protocol(logit_scale=40, prob_thd=0.0, area_thd=None, short_side=560),
)  # fmt: skip


class TestTable:
    def result(self, folder: Path, **changes) -> Path:
        """A results.json as if measured."""
        made = dict(
            method="SFP", changed_options={}, backbone="ViT-B-16", pretrained="openai",
            dataset="PascalVOCDataset", mIoU=61.4, aAcc=80.0, mAcc=70, images=1449, absent=[],
            protocol=protocol(), prompts=80, prompts_sha256=prompts_sha256(IMAGENET_PROMPTS),
            precision="fp16", names=words_of("voc21"),
        )  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({**made, **changes}))
        return folder

    def test_the_published_number_stands_beside(self, tmp_path):
        (entry,) = collect([self.result(tmp_path / "a")])
        assert (entry.dataset, entry.published, entry.paper, entry.differs) == (
            "voc21",
            63.9,
            "SFP Tab1",
            (),
        )
        assert entry.difference == pytest.approx(-2.5)
        text = markdown([entry])
        assert (
            "| SFP | ViT-B-16 | 61.4 | 63.9 | -2.5 |" in text
            and "published in SFP Tab1, 1449 images\n" in text
        )
        assert "61.4 {\\scriptsize(63.9)}" in latex([entry])
        assert (
            as_csv([entry]).splitlines()[1]
            == "SFP,ViT-B-16,voc21,61.4000,63.9000,-2.5000,SFP Tab1,,1449"
        )

    @pytest.mark.parametrize(
        ("changes", "published", "differs"),
        [
            (dict(protocol=protocol(window=336, short_side=448, pamr_iterations=10)), 63.9,
             ("window 336 instead of 224", "pamr_iterations 10 instead of 0",
              "short_side 448 instead of 336")),
            (dict(protocol=protocol(refine=["PAMR"])), 63.9, ("refine ['PAMR'] instead of []",)),
            (dict(protocol=protocol(prob_thd=0.4)), 63.9, ("prob_thd 0.4 instead of 0.15",)),
            (dict(protocol=protocol(area_thd=None)), 63.9, ("area_thd None instead of 0.1",)),
            (dict(protocol=protocol(logit_scale=40)), 63.9, ("logit_scale 40 instead of 50",)),
            (dict(protocol=protocol(pamr_dilations=[1])), 63.9, ()),
            (dict(protocol=protocol(pamr_iterations=1, pamr_dilations=[1])), 63.9,
             ("pamr_iterations 1 instead of 0", "pamr_dilations [1] instead of [8, 16]")),
            (dict(precision="bf16"), 63.9, ("precision bf16 instead of fp16",)),
            (dict(names=words_of("voc21_sclip")), 63.9, ("other words for person",)),
            (dict(names=words_of("voc21")[::-1]), 63.9,
             ("other words for television monitor, train, sofa and 17 more",)),
            (dict(names=[["sky"], *words_of("voc21")[1:]]), 63.9, ("other words for sky",)),
            (dict(prompts=1, prompts_sha256="0"), 63.9, ("prompts 1 instead of 80",)),
            (dict(prompts_sha256="0"), 63.9, ("other prompts of the same number",)),
            (dict(images=100), 63.9, ("images 100 instead of 1449",)),
            (dict(absent=["bus", "car"]), 63.9, ("no label of bus, car",)),
            (dict(changed_options=dict(hai=False)), None, ("precision fp16 instead of fp32",)),
            (dict(changed_options=dict(hai=False), precision="fp32", images=9), None,
             ("images 9 instead of 1449",)),
            (dict(pretrained="metaclip_400m", precision="fp32"), None, ()),
            (dict(dataset="MyDataset"), None, ()),
            (dict(method="SC-CLIP", names=words_of("voc21_sclip")), 64.6, ()),
            (dict(method="PEARL", names=words_of("voc21_sclip")), 64.1,
             ("window 224 instead of 0", "refine [] instead of [{'type': 'TLP', 'grid': 80}]",
              "logit_scale 50 instead of 40", "prob_thd 0.15 instead of 0.1",
              "area_thd 0.1 instead of None")),
            (dict(method="ResCLIP", backbone="ViT-L-14", **VOC20), 85.5,
             ("window 224 instead of 0", "other words for person, tvmonitor")),
            (dict(VOC20, method="CLIPSeg"), 83.2,
             ("window 224 instead of 448", "stride 112 instead of 224",
              "short_side 336 instead of 448")),
            (dict(method="SC-CLIP", backbone="ViT-L-14", names=words_of("voc21_sclip")), 65.0, ()),
            (CITY, 41.1, ()),
        ],
    )  # fmt: skip
    def test_what_differs(self, changes, published, differs, tmp_path):
        (entry,) = collect([self.result(tmp_path / "a", **changes)])
        assert entry.published == published and set(entry.differs) == set(differs)
        for text in (markdown([entry]), latex([entry])):
            assert all(each in text for each in differs)

    @pytest.mark.parametrize(
        "changes",
        [
            *(dict(mIoU=value) for value in (-0.1, 100.5, "61.4", None, True, [61], NAN, 1e300)),
            *(dict(aAcc=value) for value in (-1, 101, "x", None)),
            *(dict(mAcc=value) for value in (-1, float("inf"))),
            *(dict(images=value) for value in (0, -3, 2.5, "5", None, True)),
        ],
        ids=str,
    )
    def test_no_figures(self, changes, tmp_path):
        folder = self.result(tmp_path / "a", **changes)
        with pytest.raises(SFPError, match=f"a/results.json .*{next(iter(changes))} is .*measure"):
            collect([folder])

    def test_published_rows_of_what_is_not_run_here(self, tmp_path):
        entries = collect([self.result(tmp_path / "a"), self.result(tmp_path / "b", **VOC20)])
        below = peers(entries)
        text = markdown([*entries, *below])
        for row in (
            "| GroupViT | ViT-B-16 |  | 50.4 |  |  | 79.7 |  |",
            "| ReCo | ViT-B-16 |  | 25.1 |  |  | 57.7 |  |",
            "| PnP-OVSS | ViT-B-16 |  |  |  |  | 51.3 |  |",
            "- TCL, ViT-B-16: published in SFP Tab1; trained",
            "- PnP-OVSS, ViT-B-16: published in SFP Tab1; not run: BLIP",
        ):
            assert text.count(row) == 1
        assert "GroupViT & ViT-B-16 &  {\\scriptsize(50.4)}" in latex([*entries, *below])
        assert "ReCo,ViT-B-16,voc21,,25.1000,,SC-CLIP Tab1,not run" in as_csv(below)
        assert {entry.method for entry in below} == set(NOT_RUN)
        assert not set(NOT_RUN) & set(list_methods())
        assert not peers(collect([self.result(tmp_path / "c", dataset="ToylandDataset")]))
        assert {own.paper for own in peers(entries, "SC-CLIP")} == {"SC-CLIP Tab1"}
        table = peers_table().splitlines()
        assert len(table) == 2 + len(NOT_RUN) and table[0].count("|") == table[-1].count("|") == 14

    def test_columns_stand_in_the_papers_order(self, tmp_path):
        folders = [
            self.result(tmp_path / name, dataset=name, mIoU=20.0) for name in reversed(COLUMNS)
        ]
        head = markdown(collect(folders)).splitlines()[0]
        assert [head.index(f" {short} ") for _, short in COLUMNS.values()] == sorted(
            head.index(f" {s} ") for _, s in COLUMNS.values()
        )

    def test_headline_values_of_methods_md(self):
        assert find_published("SFP", "ViT-B-16", "ade20k") == (20.8, "SFP Tab1")
        assert find_published("SC-CLIP", "ViT-B-16", "voc20") == (84.3, "SC-CLIP Tab1")
        assert find_published("ClearCLIP", "ViT-B-16", "voc20", "SC-CLIP")[1] == "SC-CLIP Tab1"
        assert find_published("SFP", "ViT-H-14", "voc21") is None

    def test_mistakes(self, tmp_path):
        self.result(tmp_path / "a"), self.result(tmp_path / "b")
        with pytest.raises(SFPError, match="two results for SFP / ViT-B-16 / voc21"):
            markdown(collect([tmp_path / "a", tmp_path / "b"]))
        with pytest.raises(SFPError, match="no paper 'GEM'"):
            collect([tmp_path / "a"], "GEM")
        (tmp_path / "a/results.json").write_text("{}")
        with pytest.raises(SFPError, match="measure it again"):
            collect([tmp_path / "a"])
        assert markdown([]) == "no results yet\n" and Entry("a", "b", "c", 3.0).difference is None
