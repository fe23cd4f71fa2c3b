"""Masks given by the user: PNG maps, stacks, COCO files, callables; and what is wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

import sfp
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.regions import Regions, load_masks, masks_on_disk, nearest
from sfp.stages import Picture

REAL = ROOT.parent / "shared/real_data"
NAMES = ["sky", "sea", "grass"]


def picture(folder, name: str = "photo.jpg", size=(40, 60)) -> Picture:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return Picture(torch.zeros(3, 20, 30), path=str(path))


def numbers(size=(40, 60)) -> np.ndarray:
    found = np.zeros(size, np.uint8)
    found[:10], found[20:, 30:] = 5, 2
    return found


def test_a_picture_that_is_turned_has_masks_as_it_is_shown(tmp_path, clip):
    path = tmp_path / "a.jpg"
    image = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    (tmp_path / "masks").mkdir()
    Image.fromarray(numbers((60, 40))).save(tmp_path / "masks/a.png")
    found = load_masks(tmp_path / "masks", clip)(Picture(torch.zeros(3, 30, 20), path=str(path)))
    assert found.size == (60, 40) and len(found) == 2


@pytest.mark.parametrize("kind", ["png", "palette", "16 bits", "npz", "pth", "coco", "callable"])
def test_every_kind_gives_the_same_masks(kind, tmp_path, clip):
    """In subfolders as the images are, or all in one."""
    own, values = picture(tmp_path, "images/val/photo.jpg"), numbers()
    stack = np.stack([values == 2, values == 5])
    masks = tmp_path / "masks"
    if kind == "coco":
        runs = [coco_mask.encode(np.asfortranarray(one, np.uint8)) for one in stack]
        polygon = [[0, 0, 60, 0, 60, 10, 0, 10]]
        first = dict(size=runs[0]["size"], counts=runs[0]["counts"].decode())
        rows = [dict(image_id=3, segmentation=one) for one in (first, polygon)]
        images = [dict(id=3, file_name="val/photo.jpg", height=40, width=60)]
        masks = tmp_path / "masks.json"
        masks.write_text(json.dumps(dict(images=images, annotations=rows)))
    elif kind == "callable":

        def masks(_):
            return values
    else:
        place = masks / ("val" if kind == "npz" else "")
        place.mkdir(parents=True)
        if kind == "npz":
            np.savez(place / "photo.npz", masks=stack)
        elif kind == "pth":  # 0 and 255, as the authors keep them
            torch.save(torch.from_numpy(stack.astype(np.uint8) * 255), place / "photo.pth")
        else:
            mode = {"palette": "P", "16 bits": "I;16"}.get(kind, "L")
            image = Image.fromarray(values)
            image = image.convert("I;16") if mode == "I;16" else image
            if mode == "P":
                image.putpalette([0, 0, 0, 9, 9, 9] * 128)
            image.save(place / "photo.png")
    source = load_masks(masks, clip)
    found = source(own)
    assert np.array_equal(np.stack(list(found.masks())), stack)
    painted = found.painted().numpy()
    assert np.array_equal(painted, np.select([values == 2, values == 5], [1, 2]))
    assert source.fingerprint == masks_on_disk(masks).get("masks", source.fingerprint)


def test_overlaps_are_kept_in_order_and_larger_masks_painted_over_smaller_ones():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :6], masks[1, 4:6, :2], masks[2, 5:, 4:] = True, True, True
    regions = Regions.of_stack(masks)
    assert np.array_equal(np.stack(list(regions.masks())), masks) and not regions.has_rest
    assert regions.painted().unique().tolist() == [0, 1, 3] and regions.painted()[4, 0] == 1
    whole = regions.with_rest()
    assert len(whole) == 4 and whole.with_rest() is whole
    assert torch.equal(whole.painted(), regions.painted())
    assert np.array_equal(list(whole.masks())[3], ~masks.any(0))
    again = Regions.of_stack(np.stack(list(whole.masks())))
    assert again.has_rest and again.with_rest() is again  # as LaVG's files are
    everything = Regions.of_stack(np.ones((1, 8, 8), bool)).with_rest()
    assert len(everything) == 2 and everything.areas.tolist() == [64, 0]


@given(st.integers(0, 2**32), st.integers(1, 6), st.tuples(*[st.integers(1, 30)] * 4))
def test_kept_and_read_again_they_are_the_same_and_resized_by_nearest(seed, count, sizes):
    rng, (height, width, h, w) = np.random.default_rng(seed), sizes
    masks = rng.random((count, height, width)) < rng.random((count, 1, 1))
    regions = Regions.of_stack(masks)
    again = Regions.from_bytes(regions.to_bytes())
    assert again == regions
    stack = again.stack((h, w)).numpy()
    assert stack.shape == (count, h, w)
    rows, columns = np.arange(h) * height // h, np.arange(w) * width // w
    if h in (1, height, 2 * height) and w in (1, width, 2 * width):  # else floats may floor lower
        assert np.array_equal(stack, masks[:, rows][:, :, columns])
    assert np.array_equal(again.stack((height, width)).numpy(), masks)
    twice = again.stack((2 * height, 2 * width)).numpy()
    assert np.array_equal(twice, masks.repeat(2, 1).repeat(2, 2))
    values = torch.from_numpy(np.arange(height * width).reshape(height, width))
    assert torch.equal(nearest(values, (2 * height, 2 * width))[::2, ::2], values)


BAD = [
    (
        "another size",
        "png",
        lambda: np.ones((20, 60), np.uint8),
        r"60x20 pixels, the image .*60x40",
    ),
    ("empty", "png", lambda: np.zeros((40, 60), np.uint8), "photo.png has no region"),
    ("colours", "png", lambda: np.zeros((40, 60, 3), np.uint8), "photo.png is a colour PNG .RGB"),
    ("no masks", "npz", lambda: np.zeros((0, 40, 60), bool), "photo.npz has no region"),
    ("one map", "npz", lambda: np.zeros((40, 60), bool), r"photo.npz holds \(40, 60\); give masks"),
    ("fractions", "npz", lambda: np.zeros((1, 40, 60)), "photo.npz: masks are .* float64; give"),
]


@pytest.mark.parametrize(("ending", "make", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_wrong_masks_are_one_sentence(ending, make, words, tmp_path, clip):
    own = picture(tmp_path)
    (tmp_path / "masks").mkdir()
    file = tmp_path / f"masks/photo.{ending}"
    Image.fromarray(make()).save(file) if ending == "png" else np.savez(file, masks=make())
    with pytest.raises(SFPError, match=words) as caught:
        build_method("LaVG", clip, masks=str(tmp_path / "masks")).look(own)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("photo.png", b"", "photo.png can't be read as masks"),
        ("photo.npz", b"PK\3\4", "photo.npz can't be read as masks"),
        ("photo.pth", b"cos\nsystem\n", "photo.pth can't be read as masks"),
        ("other.png", b"", "has no masks of .*photo.jpg; put photo with the ending .png, .npz or"),
    ],
)
def test_files_of_other_kinds(name, content, words, tmp_path, clip):
    own = picture(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).write_bytes(content)
    with pytest.raises(SFPError, match=words):
        load_masks(tmp_path / "masks", clip)(own)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "can't be read as a COCO file"),
        (dict(images=[]), "can't be read as a COCO file.*'annotations'"),
        (dict(images=[], annotations=[]), "has no image photo.jpg among its 0"),
        (
            dict(images=[dict(id=1, file_name="photo.jpg", height=40, width=60)], annotations=[]),
            "for photo.jpg has no region",
        ),
        (
            dict(
                images=[dict(id=1, file_name="photo.jpg", height=40, width=60)],
                annotations=[dict(image_id=1, segmentation=dict(size=[9, 9], counts=[81]))],
            ),
            "A mask of image photo.jpg in .* can't be read",
        ),
        (
            dict(
                images=[dict(id=1, file_name="photo.jpg", height=4, width=4)],
                annotations=[dict(image_id=1, segmentation=[[0, 0, 4, 0, 4, 4, 0, 4]])],
            ),
            "masks of 4x4 pixels, the image",
        ),
    ],
)
def test_coco_files(content, words, tmp_path, clip):
    file, own = tmp_path / "masks.json", picture(tmp_path)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SFPError, match=words):
        load_masks(file, clip)(own)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ("nowhere/masks", "There is no folder nowhere/masks of masks"),
        ("nowhere.json", "There is no file nowhere.json of masks"),
        ("cutt", "Unknown mask program 'cutt'; did you mean 'cut'"),
        ("cut:tauu=1", "option of mask program cut 'tauu'; did you mean 'tau'"),
        (dict(type="cut", tau=2.0), "tau of mask program cut is 2.0"),
        (3, "masks of method LaVG is 3"),
        ("cut:backbone=resnet18", "plain ViT"),
        ("cut:backbone_weights=absent.pt", "There is no file absent.pt .backbone_weights"),
        ("sam2:model=./absent", "There is no folder ./absent of a SAM 2"),
        ("sam2", "SAM 2 'facebook/sam2.1-hiera-large' are not on this machine"),
    ],
)
def test_wrong_options(masks, words, clip):
    with pytest.raises(SFPError, match=words):
        build_method("LaVG", clip, masks=masks)


def test_an_image_without_a_file(tmp_path, toyland_clip):
    (tmp_path / "masks").mkdir()
    segmenter = sfp.Segmenter("LaVG", toyland_clip, masks=str(tmp_path / "masks"))
    with pytest.raises(SFPError, match="are found by the image's file, and this image has none"):
        segmenter(toyland.make_scene("val", 0).image, NAMES)


def test_masks_of_a_callable_that_are_none(clip):
    for wrong, words in ((None, "the masks of"), (np.zeros((2, 3, 4, 5), bool), r"\(2, 3, 4, 5\)")):
        source = load_masks(lambda _, own=wrong: own, clip)
        with pytest.raises(SFPError, match=f"(?i){words}"):
            source(Picture(torch.zeros(3, 20, 30)))


@pytest.mark.parametrize("method", ["LaVG", "CorrCLIP"])
@pytest.mark.skipif(
    not REAL.is_dir(), reason="the six real photographs are not free and not in the repository"
)
def test_the_six_photographs_with_masks_as_png(method, tmp_path, toyland_clip):
    """By path and in mmseg by img_path: alike to the bits where both read the same pixels, and a
    pixel's label is that of its region.
    """
    pytest.importorskip("mmseg")
    from sfp.segmentor import pictures

    photos = sorted(p for p in REAL.rglob("*.jpg"))
    assert len(photos) == 6
    for photo in photos:
        width, height = Image.open(photo).size
        rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
        blocks = rows[:, None] * 4 + columns  # 12 regions, 0 for none
        Image.fromarray(blocks.astype(np.uint8)).save(tmp_path / f"{photo.stem}.png")
    options = dict(proxy="colour") if method == "CorrCLIP" else {}
    segmenter = sfp.Segmenter(
        method, toyland_clip, masks=str(tmp_path), window=112, stride=112, short_side=112, **options
    )
    for photo, result in zip(photos, segmenter.many(photos, NAMES), strict=True):
        blocks = np.array(Image.open(tmp_path / f"{photo.stem}.png"))
        assert result.labels.shape == blocks.shape
        if method == "CorrCLIP":
            assert all(len(np.unique(result.labels[blocks == i])) == 1 for i in range(1, 12))
    assert len(segmenter.protocol()["backbones"]["masks"]) == 64
    sample = type("Sample", (), dict(metainfo=dict(img_path=str(photos[0]))))
    (picture,) = pictures([torch.zeros(3, 112, 150)], [sample])
    seen = segmenter.pipeline.method.look(picture)
    seen = seen.resized if method == "CorrCLIP" else seen
    assert seen.shape[-2:] == (112, 150)
