"""Trident against the authors' code with made-up DINO and SAM, alone and beside another image."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import second_backbone as second
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import save_file
from tiny_sam import write_sam
from transformers import SamConfig, SamModel

from sfp import Segmenter
from sfp.backbones.sam import Sam, SamAttention, colour_attention
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods.trident import affinity
from sfp.pipeline import Pipeline, Protocol
from sfp.pipeline.windows import cut, window_grid
from sfp.stages import Picture, View

SETTINGS = second.settings("trident")


def sam_part(own: dict, part: int) -> SamAttention:
    """The made-up SAM of a part of a case's picture."""
    grid, heads = tuple(own["sam_grid"]), range(own["sam_heads"])
    values, maps = [], []
    for head in heads:
        v = second.features(f"{own['sam_v']}.{part}.{head}", own["sam_channels"], *grid)
        f = second.features(f"{own['sam_attn']}.{part}.{head}", own["sam_channels"], *grid)
        f = f.flatten(1).double()
        values.append(v.flatten(1).T)
        maps.append((3 * f.T @ f / np.sqrt(own["sam_channels"])).softmax(-1).float())
    return SamAttention(grid, torch.stack(values), maps)


class Made:
    """Made-up second models and pictures of several cases of one network.

    Pictures have one colour each, halves two: by it the made-up SAM knows what it is asked for.
    """

    def __init__(self, cases: list[str]):
        self.cases, self.pictures, windows, maps = cases, [], [], []
        self.parts: list[SamAttention] = []
        for case in cases:
            own = SETTINGS[case]
            image = second.picture(own["image"], *own["size"])
            pixels = np.zeros((*own["ori_shape"], 3), np.uint8)
            for part in range(own["sam_images"]):
                width = pixels.shape[1] // own["sam_images"]
                pixels[:, part * width :] = len(self.parts)
                self.parts.append(sam_part(own, part))
            self.pictures.append(Picture(image, pixels))
            grid = window_grid(*own["size"], own["crop"], own["stride"])
            assert len(grid) == own["windows"][0] * own["windows"][1]
            for number, window in enumerate(grid):
                windows.append(cut(image, window))
                name = f"{own['dino']}.{number}"
                maps.append(second.features(name, own["dino_channels"], *own["dino_grid"]))
        first = SETTINGS[cases[0]]
        self.dino = second.MadeUp(torch.stack(windows), torch.stack(maps))
        self.options = dict(
            proxy=self.dino,
            sam=self.see,
            proxy_beta=first["beta"],
            proxy_gamma=first["gamma"],
            kappa=first["cos_fac"],
            refine_neg_cos=first["refine_neg_cos"],
            sam_halves=first["sam_images"] == 2,
        )

    def see(self, pixels: np.ndarray) -> SamAttention:
        return self.parts[int(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2, 0])]

    def pipeline(self, **options) -> Pipeline:
        own = SETTINGS[self.cases[0]]
        method = build_method("Trident", second.clip_of(self.cases[0]), **self.options, **options)
        return Pipeline(method, None, Protocol(window=own["crop"], stride=own["stride"]))


def check(case: str, pipeline: Pipeline, view: View) -> None:
    own, arrays, text = SETTINGS[case], second.golden("trident", case), second.text()
    method = pipeline.method
    with torch.inference_mode():
        features = method.trunk.readout(method.mixed(view)).flatten(0, 1)
    second.close(features[arrays["tok"]], arrays["feat"], 5e-5, "feat")
    scores = method.score(view, text)
    second.close(scores.permute(2, 0, 1), arrays["logits"], 1e-5, "logits")
    every = own["keep_every"]
    whole = pipeline.score(view, text, tuple(own["ori_shape"])).canvas()
    second.close(whole[:, ::every, ::every], arrays["image_logits"], 1e-5, "image_logits")


@pytest.mark.parametrize("case", SETTINGS)
def test_equals_the_official_code(case):
    made = Made([case])
    pipeline = made.pipeline()
    (view,) = pipeline.views(made.pictures)
    check(case, pipeline, view)


def alike() -> list[list[str]]:
    """Cases that one method can take: of one network and with equal constants."""
    keys = ("beta", "gamma", "cos_fac", "refine_neg_cos", "sam_images", "crop", "stride",
            "dino_grid", "dino_channels")  # fmt: skip
    groups: dict[str, list[str]] = {}
    for case, own in SETTINGS.items():
        groups.setdefault(f"{case.split('/')[0]} {[own[key] for key in keys]}", []).append(case)
    return [cases for cases in groups.values() if len(cases) > 1]


@pytest.mark.parametrize("cases", alike(), ids=" ".join)
@pytest.mark.parametrize("at_once", [None, 2])
def test_beside_another_image_in_one_batch(cases, at_once):
    """Of several windows each; a batch of two windows has one of either image."""
    made = Made(cases)
    pipeline = made.pipeline()
    pipeline.windows_at_once = at_once
    for case, view in zip(cases, pipeline.views(made.pictures), strict=True):
        check(case, pipeline, view)


# ---------------------------------------------------------------------- parts of it
@pytest.mark.parametrize(
    ("size", "window", "expected"),
    [
        ((448, 608), 336, (448, 608)),  # multiples stay
        ((448, 672), 336, (448, 672)),
        ((336, 500), 336, (352, 512)),  # 336 * 512 / 500 = 344.1, up to 352
        ((500, 336), 336, (512, 352)),
        ((449, 600), 336, (464, 608)),  # 449 * 608 / 600 = 454.99
        ((447, 608), 336, (448, 608)),  # the long side is one already
        ((320, 480), 336, (336, 480)),  # below the window, though multiples: as wide as it
        ((100, 200), 336, (336, 336)),
        ((100, 200), 0, (112, 208)),
    ],
)
def test_the_size_that_windows_slide_over(size, window, expected, clip):
    method = build_method("Trident", clip, proxy="colour", sam=None)
    assert method.fit(size, window, 224) == expected


@pytest.mark.parametrize("options", [dict(window=230), dict(stride=100)])
def test_windows_that_are_no_multiples_of_the_patch(options, clip):
    method = build_method("Trident", clip, proxy="colour", sam=None)
    with pytest.raises(SFPError, match=r"multiples of the patch 16.*window=0"):
        Pipeline(method, None, Protocol(**options))


@pytest.mark.parametrize("refine_neg_cos", [True, False])
@pytest.mark.parametrize("kappa", [-1.0, 0.0, 1.2, 30.0])
def test_affinity_is_a_plain_readings(kappa, refine_neg_cos):
    heads, places, width = 3, 10, 4
    values = torch.randn(heads, places, width)
    values[:, 0] = -values[:, 1:].mean(1)  # a negative mean of cosines
    maps = torch.randn(heads, places, places).softmax(-1) * 0.9
    found = affinity(SamAttention((2, 5), values, iter(maps)), kappa, refine_neg_cos)
    cosines = [F.cosine_similarity(v[:, None], v, dim=-1) for v in values]
    for i in range(places):
        theta = kappa * sum(float(c[i].mean()) for c in cosines) / heads
        if theta < 0 and not refine_neg_cos:
            theta = 0.6
        theta = min(theta, 0.9)
        row = torch.zeros(places)
        for c, p in zip(cosines, maps, strict=True):
            for j in range(places):
                if j == i or c[i, j] > theta:
                    row[j] += p[i, j] / heads
        torch.testing.assert_close(found[i], row / row.sum(), atol=1e-6, rtol=1e-5)


def test_a_row_that_attends_to_padding_alone_keeps_itself():
    maps = torch.zeros(1, 4, 4)
    found = affinity(SamAttention((2, 2), torch.randn(1, 4, 3), maps), 1.2, True)
    assert torch.equal(found, torch.eye(4))


def test_one_window_without_sam_is_proxyclip(clip):
    """On the DINO's grid, which is twice CLIP's."""
    options = dict(proxy=lambda windows: F.avg_pool2d(windows, 8))
    window, text = second.picture("one", 224, 320)[None], second.text().vectors
    found = build_method("Trident", clip, sam=None, **options).scores(window, text)
    expected = build_method("ProxyCLIP", clip, pad_to=1, **options).scores(window, text)
    assert found.shape == (1, 28, 40, 7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_windows_are_coupled_and_joined(clip):
    """The mean of S is the image's; where windows overlap their tokens are averaged."""
    method = build_method("Trident", clip, proxy="colour", sam=None)
    pipeline = Pipeline(method, None, Protocol(window=224, stride=112))
    (view,) = pipeline.views([second.picture("two", 224, 336)])
    own = (view["proxy"].flatten(2).mT @ view["proxy"].flatten(2)).mean((1, 2), keepdim=True)
    means = own.mean().expand_as(own), own
    joint, apart = (method._mixed(view["proxy"], view["values"], mean) for mean in means)
    assert not torch.allclose(joint, apart, atol=1e-3)
    canvas = method.canvas(view)
    assert canvas.shape[1:] == (28, 42)
    torch.testing.assert_close(canvas[:, :, :14], joint[0, :, :, :14])
    both = (joint[0, :, :, 14:] + joint[1, :, :, :14]) / 2
    torch.testing.assert_close(canvas[:, :, 14:28], both)


@pytest.mark.parametrize(("cells", "rho"), [(6, 1), (14, 1), (21, 2), (24, 2), (28, 2), (35, 2)])
def test_the_canvas_is_a_multiple_of_clips_grid(cells, rho, clip):
    """Of 14 cells: 21 / 14 = 1.5 and 35 / 14 = 2.5 are rounded to the even number."""
    own = functools.partial(F.adaptive_avg_pool2d, output_size=cells)
    method = build_method("Trident", clip, proxy=own, sam=None)
    (view,) = Pipeline(method, None, Protocol()).views([second.picture("four", 224, 336)])
    assert method.canvas(view).shape[1:] == (14 * rho, 21 * rho)


def test_several_vocabularies_share_one_look(clip):
    calls = []

    def see(pixels: np.ndarray) -> SamAttention:
        calls.append(pixels.shape)
        return colour_attention(pixels)

    method = build_method("Trident", clip, proxy="colour", sam=see)
    pipeline = Pipeline(method, None, Protocol())
    picture = Picture(second.picture("three", 100, 150), np.zeros((90, 130, 3), np.uint8))
    (view,) = pipeline.views([picture])
    assert view.image.shape[1:] == (224, 224)
    text = second.text()
    first = pipeline.score(view, text, (90, 130)).canvas()
    fewer = replace(text, vectors=text.vectors[:3], class_of_query=(0, 1, 2))
    second_ = pipeline.score(view, fewer, (90, 130)).canvas()
    torch.testing.assert_close(second_, first[:3])
    assert calls == [(96, 144, 3)]


# ---------------------------------------------------------------------- whole runs
NAMES = ["sky", "sea", "grass", "sand", "house"]


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam") / "tiny"
    write_sam(folder)
    return str(folder)


def photo(number: int, height: int, width: int) -> np.ndarray:
    return toyland.make_scene("tune", number).image[-height:, -width:]


@pytest.mark.parametrize("options", [{}, dict(sam_halves=True)])
def test_pictures_of_any_size_alone_and_together(options, sam_folder, toyland_clip):
    """No multiples of the patch, smaller than the window, upright; their sizes are the labels'."""
    segmenter = Segmenter(
        "Trident",
        toyland_clip,
        proxy="colour",
        sam=sam_folder,
        short_side=120,
        window=128,
        stride=64,
        refine=[dict(type="SAM", sam=sam_folder, minimal_area=20, iou_thresh=-9.0)],
        **options,
    )
    pictures = [photo(0, 151, 203), photo(1, 120, 129), photo(2, 240, 99)]
    with torch.inference_mode():
        alone = [segmenter(picture, NAMES) for picture in pictures]
        together = list(segmenter.many(pictures, NAMES))
    for picture, one, other in zip(pictures, alone, together, strict=True):
        assert one.labels.shape == picture.shape[:2]
        assert (one.labels == other.labels).mean() > 0.999
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    described = segmenter.protocol()["backbones"]
    assert described["sam"] == described["SAM.sam"] and described["proxy"] == "colour"


def test_the_refiner_takes_what_the_method_saw(sam_folder, toyland_clip, monkeypatch):
    """Of the same SAM, not of another; a method without SAM has it look itself."""
    seen = []
    see = Sam.see
    monkeypatch.setattr(Sam, "see", lambda own, pixels: seen.append(own.name) or see(own, pixels))

    def count(method: str, of_refiner: str, **options) -> int:
        seen.clear()
        refine = [dict(type="SAM", sam=of_refiner, minimal_area=20)]
        common = dict(short_side=112, window=112, stride=112, refine=refine, **options)
        Segmenter(method, toyland_clip, **common)(photo(0, 120, 150), NAMES)
        return len(seen)

    other = f"{sam_folder}-other"
    write_sam(other, seed=1)
    of_trident = dict(proxy="colour", sam=sam_folder)
    assert count("Trident", sam_folder, **of_trident) == 1
    assert count("Trident", other, **of_trident) == 2
    assert count("Trident", sam_folder, sam_halves=True, **of_trident) == 3
    assert count("MaskCLIP", sam_folder) == 1


def test_through_the_command_line(sam_folder, tmp_path, monkeypatch, tool):
    """Plain colours for DINO, a tiny made-up SAM: that the way works, no more."""
    monkeypatch.setenv("SFP_DATA", str(tmp_path / "data"))
    options = [
        "test_dataloader.dataset.scenes=2",
        "test_dataloader.batch_size=2",
        "test_dataloader.num_workers=0",
        "model.method=Trident",
        "model.purify=None",
        f"model.sam={sam_folder}",
        f"model.refine=['SAM:sam={sam_folder}']",
    ]
    config = str(ROOT / "configs/cfg_toyland.py")
    code, out, error = tool("test", config, "--work-dir", tmp_path, "--cfg-options", *options)
    assert (code, error) == (0, "")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["images"] == 2 and "mIoU" in out
    assert set(results["backbones"]) == {"proxy", "sam", "SAM.sam"}
    assert set(results["weight_files"]) >= {"clip", "sam", "SAM.sam"}
    assert results["options"]["proxy"] == "colour" and results["options"]["sam"] == sam_folder


@pytest.mark.slow
def test_real_sizes_through_the_real_loading_code(tmp_path):
    """CLIP, DINO and SAM as large as ViT-B/16, made-up weights, from files; labels redrawn."""
    torch.manual_seed(0)
    dino = timm.create_model("vit_base_patch16_224.dino", pretrained=False, num_classes=0)
    save_file(dino.state_dict(), tmp_path / "dino.safetensors")
    SamModel(SamConfig()).save_pretrained(tmp_path / "sam")
    clip = open_clip.create_model("ViT-B-16", pretrained=None)
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    del dino, clip
    segmenter = Segmenter(
        "Trident",
        "ViT-B-16",
        str(tmp_path / "clip.safetensors"),
        device="cpu",
        quick_gelu=True,
        prompts=["a photo of a {}."],
        short_side=448,
        window=336,
        stride=224,
        proxy_weights=str(tmp_path / "dino.safetensors"),
        sam_weights=str(tmp_path / "sam"),
        refine=[dict(type="SAM", sam_weights=str(tmp_path / "sam"), iou_thresh=-1e9)],
    )
    method = segmenter.pipeline.method
    assert method.backbones["proxy"].heads == method.backbones["sam"].heads == 12
    refiner = segmenter.pipeline.protocol.refiners[0]
    assert refiner.backbones["sam"] is method.backbones["sam"]
    result = segmenter(photo(0, 300, 350), NAMES)
    assert result.labels.shape == (300, 350) and np.isfinite(result.scores).all()
