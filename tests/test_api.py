"""``Segmenter``: pictures of every kind in, results that draw and save themselves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import sfp
from sfp.api import read_image, resize_short_side
from sfp.datasets import toyland

NAMES = ["sky", ["sea", "ocean"], "house", "boat"]


@pytest.fixture(scope="module")
def segmenter():
    return sfp.Segmenter("SFP", model="Toyland", device="cpu")


@pytest.fixture(scope="module")
def scene():
    return toyland.make_scene("val", 0)


def test_a_path_a_pil_image_and_an_array_are_one(segmenter, scene, tmp_path):
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    results = [segmenter(given, NAMES) for given in (scene.image, Image.fromarray(scene.image), tmp_path / "scene.png")]
    first = results[0]
    assert first.labels.shape == scene.labels.shape and first.labels.dtype == np.int64
    assert first.names == ("sky", "sea", "house", "boat")
    assert first.scores.shape == (4, *scene.labels.shape) and first.scores.dtype == np.float32
    assert np.array_equal(first.labels, first.scores.argmax(0))
    assert abs(sum(first.areas.values()) - 1) < 1e-9
    for other in results[1:]:
        assert np.array_equal(first.labels, other.labels)


def test_both_doors_give_the_same_labels(segmenter, scene, tmp_path):
    """The mmseg segmentor on mmcv's resized image, and ``Segmenter`` on the file."""
    from sfp.plugin import require_mmseg

    require_mmseg()
    import mmcv
    from mmengine.registry import init_default_scope
    from mmseg.structures import SegDataSample

    from sfp.segmentor import SFPSegmentor

    init_default_scope("mmseg")
    segmentor = SFPSegmentor(
        clip="Toyland",
        pretrained="toyland",
        names=NAMES,
        data_preprocessor=dict(type="SegDataPreProcessor", mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323], bgr_to_rgb=True),
    )
    resized = mmcv.imrescale(scene.image[..., ::-1], (2048, 336))
    sample = SegDataSample(metainfo=dict(ori_shape=scene.labels.shape, img_shape=resized.shape[:2]))
    data = dict(inputs=[torch.from_numpy(resized.transpose(2, 0, 1).copy())], data_samples=[sample])
    (found,) = segmentor.test_step(data)
    assert (found.pred_sem_seg.data[0].numpy() == segmenter(scene.image, NAMES).labels).mean() > 0.995


def test_options_reach_protocol_and_method(scene):
    options = dict(purify=False, window=0, prob_thd=0.2, sae_residual="none")
    segmenter = sfp.Segmenter("SFP", "Toyland", device="cpu", short_side=224, **options)
    method = segmenter.pipeline.method
    assert method.purifier is None and method.sae_residual == "none"
    protocol = segmenter(scene.image, NAMES).protocol
    assert (protocol["window"], protocol["prob_thd"], protocol["short_side"], protocol["model"]) == (0, 0.2, 224, "Toyland")


def test_saving_and_drawing(segmenter, scene, tmp_path):
    result = segmenter(scene.image, NAMES)
    labels = Image.open(result.save(tmp_path / "labels.png"))
    assert np.array_equal(np.asarray(labels), result.labels)
    assert tuple(labels.getpalette()[:3]) == toyland.PALETTE[0]
    overlay = Image.open(result.save(tmp_path / "overlay.jpg"))
    assert overlay.width == scene.image.shape[1] and overlay.height > scene.image.shape[0]  # with the legend below
    with np.load(result.save(tmp_path / "all.npz")) as saved:
        assert np.array_equal(saved["labels"], result.labels) and saved["names"].tolist() == list(result.names)
    assert result.overlay(legend=False).size == (scene.image.shape[1], scene.image.shape[0])
    assert result._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(sfp.SFPError, match=r"\.gif"):
        result.save(tmp_path / "labels.gif")
    with pytest.raises(sfp.SFPError, match="can't be written"):
        result.save(tmp_path / "absent" / "labels.png")


class TestReadImage:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)

    @pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
    def test_modes(self, mode, tmp_path):
        image = Image.fromarray(self.pixels).convert(mode)
        read = read_image(image)
        assert read.shape == (20, 30, 3) and read.dtype == np.uint8

    def test_sixteen_bits(self):
        ramp = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
        read = read_image(Image.fromarray(ramp))
        assert read.min() == 0 and read.max() == 255

    def test_exif_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(self.pixels).save(tmp_path / "turned.png", exif=exif)
        assert read_image(tmp_path / "turned.png").shape == (30, 20, 3)

    def test_transparent_pixels_become_white(self):
        image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
        assert (read_image(image) == 255).all()

    @pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), 3, None])
    def test_what_is_no_image(self, bad):
        with pytest.raises(sfp.SFPError, match="give"):
            read_image(bad)

    def test_files(self, tmp_path):
        (tmp_path / "words.jpg").write_text("no picture")
        with pytest.raises(sfp.SFPError, match=r"words\.jpg can't be read as an image"):
            read_image(tmp_path / "words.jpg")
        with pytest.raises(sfp.SFPError, match="no image file"):
            read_image(tmp_path / "absent.jpg")
        Image.fromarray(self.pixels).save(tmp_path / "whole.png")
        (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
        with pytest.raises(sfp.SFPError, match="can't be read"):
            read_image(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((375, 500), (336, 448)), ((427, 640), (336, 504)), ((500, 375), (448, 336)), ((100, 1000), (205, 2048))],
)
def test_resize_sizes_are_mmcvs(size, expected):
    resized = resize_short_side(np.zeros((*size, 3), np.uint8), 336)
    assert tuple(resized.shape[1:]) == expected


@pytest.mark.parametrize(("names", "words"), [([], "no names"), (["cat", "cat"], "duplicate"), (["cat", ""], "empty")])
def test_wrong_names(names, words, segmenter, scene):
    with pytest.raises(sfp.SFPError, match=words):
        segmenter(scene.image, names)


def test_wrong_options():
    with pytest.raises(sfp.SFPError, match="option of method SFP 'probthd'"):
        sfp.Segmenter("SFP", "Toyland", probthd=0.2)
    with pytest.raises(sfp.SFPError, match="short_side"):
        sfp.Segmenter("SFP", "Toyland", short_side=0)
