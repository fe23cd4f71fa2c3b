"""The datasets' trees: sizes, palettes, background, ignore and 16-bit labels are read right."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from sfp.errors import SFPError
from sfp.evaluation.config import check_dataset, read_config
from sfp.pipeline import Vocabulary
from sfp.plugin import require_mmseg

REAL = ROOT.parent / "shared/real_data"


SIZES = ((80, 64), (61, 83))  # of the two images of each tree
FOLDERS = {  # root, image folder, label folder, suffixes, list of images
    "voc2012": (
        "VOCdevkit/VOC2012",
        "JPEGImages",
        "SegmentationClass",
        ".jpg",
        ".png",
        "ImageSets/Segmentation/val.txt",
    ),
    "context": (
        "VOCdevkit/VOC2010",
        "JPEGImages",
        "SegmentationClassContext",
        ".jpg",
        ".png",
        "ImageSets/SegmentationContext/val.txt",
    ),
    "context459": (
        "VOCdevkit/VOC2010",
        "JPEGImages",
        "annotations_detectron2/pc459_val",
        ".jpg",
        ".tif",
        "ImageSets/SegmentationContext/val.txt",
    ),
    "object": (
        "coco_stuff164k",
        "images/val2017",
        "annotations/val2017",
        ".jpg",
        "_instanceTrainIds.png",
        None,
    ),
    "stuff": (
        "coco_stuff164k",
        "images/val2017",
        "annotations/val2017",
        ".jpg",
        "_labelTrainIds.png",
        None,
    ),
    "ade20k": (
        "ADEChallengeData2016",
        "images/validation",
        "annotations/validation",
        ".jpg",
        ".png",
        None,
    ),
    "ade847": (
        "ADE20K_2021_17_01",
        "images_detectron2/validation",
        "annotations_detectron2/validation",
        ".jpg",
        ".tif",
        "validation.txt",
    ),
    "cityscapes": (
        "cityscapes",
        "leftImg8bit/val",
        "gtFine/val",
        "_leftImg8bit.png",
        "_gtFine_labelTrainIds.png",
        None,
    ),
}
IDS = dict(cityscapes=("lindau/lindau_000000_000019", "munster/munster_000001_000019"))
LABELS = dict(  # every value that a label map of the tree may hold
    voc2012=[*range(21), 255], context=[*range(60)], context459=[*range(459), 65535],
    object=[*range(81)], stuff=[*range(171), 255],
    ade20k=[*range(151)], ade847=[*range(847), 65535], cityscapes=[*range(19), 255],
)  # fmt: skip


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """All trees with two made-up photographs each; the labels of each by tree, (H, W)."""
    data, rng, labels = tmp_path_factory.mktemp("data"), np.random.default_rng(0), {}
    for tree, (root, images, masks, suffix, label_suffix, listing) in FOLDERS.items():
        ids = IDS.get(tree, ("2008_000001", "2008_000002"))
        labels[tree] = []
        for i, (name, size) in enumerate(zip(ids, SIZES, strict=True)):
            image, label = (
                data / root / images / f"{name}{suffix}",
                data / root / masks / f"{name}{label_suffix}",
            )
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
            values = np.resize(np.roll(LABELS[tree], 7 * i), size).astype(
                np.uint16 if label_suffix == ".tif" else np.uint8
            )
            picture = Image.fromarray(values)
            if tree in ("voc2012", "context"):
                picture = Image.fromarray(values, "P")
                picture.putpalette(rng.integers(0, 256, 768, np.uint8).tolist())
            picture.save(label)
            labels[tree].append(values.astype(int))
        if listing:
            (data / root / listing).parent.mkdir(parents=True, exist_ok=True)
            (data / root / listing).write_text("".join(f"{name}\n" for name in ids))
    return data, labels


def build(name: str, data, monkeypatch):
    """The dataset of a config."""
    require_mmseg()
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    monkeypatch.setenv("SFP_DATA", str(data))
    cfg = read_config(ROOT / f"configs/cfg_{name}.py", [])
    check_dataset(cfg)
    init_default_scope("mmseg")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    names = Vocabulary.from_file(cfg.model.name_path, cfg.model.get("name_separator", ", ")).names
    assert len(names) == len(dataset.metainfo["classes"]) == len(dataset.metainfo["palette"])
    assert dataset.ignore_index == cfg.test_evaluator.get("ignore_index", 255)
    return dataset


def load(name: str, data, monkeypatch) -> list:
    """The items of a config's dataset, through its own pipeline."""
    dataset = build(name, data, monkeypatch)
    return [dataset[i] for i in range(len(dataset))]


def truth(item) -> np.ndarray:
    return item["data_samples"].gt_sem_seg.data[0].numpy()


def reduced(labels: np.ndarray) -> np.ndarray:
    """Label 0 ignored, the others shifted down by one."""
    return np.where((labels == 0) | (labels == 255), 255, labels - 1)


@pytest.mark.parametrize(
    ("name", "tree", "ignored_zero"),
    [
        ("voc20", "voc2012", True),
        ("voc21", "voc2012", False),
        ("context59", "context", True),
        ("context60", "context", False),
        ("coco_object", "object", False),
        ("coco_stuff164k", "stuff", False),
        ("ade20k", "ade20k", True),
        ("city_scapes", "cityscapes", False),
        ("ade847", "ade847", False),
        ("context459", "context459", False),
    ],
)
def test_labels_and_sizes(name, tree, ignored_zero, trees, monkeypatch):
    data, labels = trees
    items = load(name, data, monkeypatch)
    assert len(items) == 2
    short = 560 if name == "city_scapes" else 336
    for item, expected, size in zip(items, labels[tree], SIZES, strict=True):
        assert np.array_equal(truth(item), reduced(expected) if ignored_zero else expected)
        assert item["data_samples"].ori_shape == size and item["inputs"].dtype.itemsize == 1
        assert min(item["inputs"].shape[1:]) == short and item["inputs"].shape[0] == 3


@pytest.mark.parametrize(("name", "tree"), [("ade847", "ade847"), ("context459", "context459")])
def test_class_255_counts_and_65535_does_not(name, tree, trees, monkeypatch):
    """A prediction of the truth, with nonsense where it is ignored, has IoU 1 in each class."""
    data, _ = trees
    dataset = build(name, data, monkeypatch)
    import torch
    from mmengine.structures import PixelData
    from mmseg.registry import METRICS

    metric = METRICS.build(read_config(ROOT / f"configs/cfg_{name}.py", []).test_evaluator)
    metric.dataset_meta = dataset.metainfo
    items = [dataset[i]["data_samples"] for i in range(len(dataset))]
    for item in items:
        label = item.gt_sem_seg.data
        item.pred_sem_seg = PixelData(data=torch.where(label == 65535, 3, label))
        assert (label == 255).any() and (label == 65535).any()
    metric.process({}, [item.to_dict() for item in items])
    right, predicted, labelled = sum(metric.counts.values())
    assert labelled[255] > 0 and (right == labelled).all() and (predicted == labelled).all()
    assert int(labelled.sum()) == sum(int((item.gt_sem_seg.data != 65535).sum()) for item in items)


@pytest.mark.parametrize("program", ["compare_names", "probe_layers"])
def test_programs_take_labels_of_16_bits(program, trees, monkeypatch, tool):
    monkeypatch.setenv("SFP_DATA", str(trees[0]))
    options = (
        "model.clip=Toyland", "model.pretrained=toyland", "model.prompts=photo", "short_side=112",
        "model.window=112", "model.method=CLIP", "settings=common",
    )  # fmt: skip
    config = ROOT / "configs/cfg_context459.py"
    more = ["--detectors"] if program == "probe_layers" else []
    code, _, error = tool(program, config, *more, "--cfg-options", *options)
    assert code == 0, error


class TestLoadLabels:
    """Files that a config's dataset wouldn't meet."""

    def read(self, path, **more) -> np.ndarray:
        require_mmseg()
        from sfp.datasets.labels import LoadLabels

        loader = LoadLabels(65535, ignored_in_file=True)
        results = loader(dict(seg_map_path=str(path), seg_fields=[], **more))
        assert results["seg_fields"] == ["gt_seg_map"] and results["gt_seg_map"].dtype == np.int32
        return results["gt_seg_map"]

    @pytest.mark.parametrize(
        ("suffix", "kind"),
        [(".png", np.uint16), (".tif", np.uint16), (".png", np.uint8), (".tif", np.uint8)],
    )
    def test_kinds(self, suffix, kind, tmp_path):
        labels = np.array([[0, 1, 254, 255], [5, 6, 7, np.iinfo(kind).max]], kind)
        Image.fromarray(labels).save(tmp_path / f"label{suffix}")
        assert np.array_equal(self.read(tmp_path / f"label{suffix}"), labels)

    def test_reduce_zero_label(self, tmp_path):
        Image.fromarray(np.array([[0, 1, 255, 256, 65535]], np.uint16)).save(tmp_path / "label.tif")
        assert self.read(tmp_path / "label.tif", reduce_zero_label=True).tolist() == [
            [65535, 0, 254, 255, 65535]
        ]

    def test_colours_are_refused(self, tmp_path):
        Image.new("RGB", (4, 3)).save(tmp_path / "label.png")
        with pytest.raises(SFPError, match=r"label\.png has colours \(RGB\)"):
            self.read(tmp_path / "label.png")

    def test_a_label_map_is_refused(self, tmp_path):
        Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "label.tif")
        with pytest.raises(SFPError, match=r"metainfo\.classes"):
            self.read(tmp_path / "label.tif", label_map={0: 1})


def test_a_names_file_of_another_length(trees, tmp_path):
    require_mmseg()
    from mmseg.registry import DATASETS

    (tmp_path / "names.txt").write_text("wall\nsky\n")
    with pytest.raises(SFPError, match=r"has 2 lines, but ADE847Dataset has 847"):
        DATASETS.build(dict(type="ADE847Dataset", name_path=str(tmp_path / "names.txt")))
    with pytest.raises(SFPError, match=r"There is no names file .*name_path"):
        DATASETS.build(dict(type="ADE847Dataset", name_path=str(tmp_path / "absent.txt")))


def test_the_word_bed_of_cocos_background_and_of_its_own_class():
    """One query text in two classes: both have its score, and the lower class wins."""
    import torch

    from sfp.pipeline.decode import decode
    from sfp.pipeline.score_map import ScoreMap

    vocabulary = Vocabulary.from_file(ROOT / "configs/cls_coco_object.txt")
    places = [i for i, query in enumerate(vocabulary.queries) if query == "bed"]
    assert [vocabulary.class_of_query[i] for i in places] == [0, 60] and vocabulary.names[
        60
    ] == "bed"
    scores = torch.zeros(len(vocabulary.queries), 2, 3)
    scores[places] = 1.0
    labels, kept = decode(
        ScoreMap.of_pixels(scores), torch.tensor(vocabulary.class_of_query), keep_probabilities=True
    )
    assert (
        bool((labels == 0).all())
        and torch.equal(kept[0], kept[60])
        and float(kept[1].max()) < float(kept[0].min())
    )


def test_the_names_files():
    """30 queries for voc20, 56 for voc21, SFP's "people", ship and table."""
    lines = (ROOT / "configs/cls_voc21.txt").read_text().splitlines()
    assert sum(len(line.split(", ")) for line in lines) == 56
    assert lines[1:] == (ROOT / "configs/cls_voc20.txt").read_text().splitlines()
    assert (
        lines[4] == "ship"
        and lines[11] == "table"
        and lines[15].startswith("people, people in shirt")
    )
    assert (ROOT / "configs/cls_ade20k.txt").read_text().splitlines()[7] == "bed"


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the six real photographs are not free and not in the repository"
)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("voc21", {(338, 500), (375, 500)}), ("ade20k", {(512, 683), (364, 500), (300, 400)})],
)
def test_real_photographs(name, sizes, monkeypatch):
    items = load(name, REAL, monkeypatch)
    assert len(items) == 3
    assert {item["data_samples"].ori_shape for item in items} == sizes
    found = set(np.unique(np.concatenate([truth(item).ravel() for item in items])).tolist())
    # person, bottle, chair, sofa, bus, car; wall, building, sky, tree, road, grass, sidewalk,
    # plant, car, escalator
    expected = (
        {0, 5, 6, 7, 9, 15, 18, 255} if name == "voc21" else {0, 1, 2, 4, 6, 9, 11, 17, 20, 96, 255}
    )
    assert found >= expected
