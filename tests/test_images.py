"""Pictures of every kind and their sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import sfp
from sfp.images import read_image, resize_short_side


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

    def test_cmyk_file(self, tmp_path):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
        red = read_image(tmp_path / "red.jpg")
        assert red[..., 0].min() > 200 and red[..., 1:].max() < 60

    def test_sixteen_bit_files(self, tmp_path):
        ramp = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
        for name in ("ramp.png", "ramp.tif"):
            Image.fromarray(ramp).save(tmp_path / name)
            read = read_image(tmp_path / name)
            assert np.abs(read[..., 0].astype(float) - ramp / 257).max() <= 1

    def test_palette_with_a_transparent_colour(self):
        image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.info["transparency"] = 0
        assert read_image(image).tolist() == [[[255, 255, 255], [200, 0, 0]]]

    def test_an_animation_shows_its_first_frame(self, tmp_path):
        first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
        first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
        assert (read_image(tmp_path / "two.gif") == (255, 0, 0)).all()

    def test_a_pil_image_is_turned_like_its_file(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(self.pixels).save(tmp_path / "turned.png", exif=exif)
        with Image.open(tmp_path / "turned.png") as opened:
            assert np.array_equal(read_image(opened), read_image(tmp_path / "turned.png"))

    def test_arrays_and_tensors(self):
        grey = self.pixels[..., 0]
        for given in (
            grey,
            grey[..., None],
            torch.from_numpy(grey)[None],
            torch.from_numpy(grey)[None] / 255,
        ):
            assert np.array_equal(read_image(given), np.dstack([grey] * 3))
        half = torch.from_numpy(self.pixels).permute(2, 0, 1).bfloat16() / 255
        assert np.abs(read_image(half).astype(int) - self.pixels).max() <= 1
        clear = np.dstack([self.pixels, np.zeros((20, 30), np.uint8)])
        assert (read_image(clear) == 255).all() and (
            read_image(torch.from_numpy(clear).permute(2, 0, 1)) == 255
        ).all()

    def test_the_callers_pixels_are_not_shared(self):
        pixels = self.pixels.copy()
        read_image(pixels)[:] = 0
        assert np.array_equal(pixels, self.pixels)

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (np.zeros((4, 4, 3)), "give"),
            (np.zeros((4, 4, 2), np.uint8), "give"),
            (np.zeros((2, 4, 4, 3), np.uint8), "give"),
            (np.zeros((0, 4, 3), np.uint8), "give"),
            (3, "give a path"),
            (None, "give a path"),
            (torch.zeros(1, 3, 4, 4), "give one image"),
            (torch.zeros(8, 4, 3), "give one image"),
            (torch.full((3, 4, 4), 2.0), r"must lie in \[0, 1\]"),
            (torch.full((3, 4, 4), float("nan")), r"must lie in \[0, 1\]"),
            (torch.zeros(3, 4, 4, dtype=torch.int32), "give"),
            (Image.new("RGB", (0, 5)), "0x5 pixels"),
            (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN"),
        ],
    )
    def test_what_is_no_image(self, bad, words):
        with pytest.raises(sfp.SFPError, match=words):
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
    [
        ((375, 500), (336, 448)),
        ((427, 640), (336, 504)),
        ((500, 375), (448, 336)),
        ((100, 1000), (205, 2048)),
    ],
)
def test_resize_sizes_are_mmcvs(size, expected):
    resized = resize_short_side(np.zeros((*size, 3), np.uint8), 336)
    assert tuple(resized.shape[1:]) == expected
