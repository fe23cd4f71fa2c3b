"""What the field needs of the stages, each by a small made-up method.

Under 30 lines, no other file.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

import sfp
from sfp.backbones import Backbone, load_backbone
from sfp.clip.kernels import linear
from sfp.datasets import toyland
from sfp.methods import METHODS, Method, build_method
from sfp.refiners import REFINERS, Refiner

NAMES = list(toyland.CLASSES)


class AdaptedText(Method):
    """Text inside the method.

    Class vectors of each image's likeliest prompts, less the mean word.
    """

    prompts_kept: int = 8

    def tokens(self, windows):
        return self.stream(windows, last=self.trunk.layers)[:, 1:]

    def score(self, view, text):
        prompts = text.prompts()  # (Q, P, D)
        mean = view["features"].mean((0, 1, 2))
        best = (prompts @ mean).topk(self.prompts_kept, dim=1).indices
        chosen = prompts.gather(1, best[..., None].expand(-1, -1, prompts.shape[2])).mean(1)
        return linear(view["features"], chosen - text.encode(["a thing"]))


class BestOfWindows(Method):
    """All windows of an image at once, with their places: a pixel gets its best window's scores."""

    def tokens(self, windows):
        return self.stream(windows, last=self.trunk.layers)[:, 1:]

    def score(self, view, text):
        _, height, width = view.image.shape
        scores = super().score(view, text).permute(0, 3, 1, 2)
        canvas = torch.full((scores.shape[1], height, width), -1.0)
        maps = F.interpolate(scores, size=view.size, mode="bilinear")
        for own, (top, left, bottom, right) in zip(maps, view.boxes.tolist(), strict=True):
            part = canvas[:, top:bottom, left:right]
            torch.maximum(part, own, out=part)
        crops = [canvas[:, t:b, left:r] for t, left, b, r in view.boxes.tolist()]
        return torch.stack(crops).permute(0, 2, 3, 1)


class RegionVote(Method):
    """Region masks of the whole image: pixels of a region share its mean score."""

    def tokens(self, windows):
        return self.stream(windows, last=self.trunk.layers)[:, 1:]

    def look(self, picture):
        return picture.image[0] > picture.image[0].median()  # two regions, (H, W) bool

    def refine(self, scores, view, text):
        mask = F.interpolate(view.looked[None, None].float(), size=scores.shape[1:])[0, 0] > 0.5
        for region in (mask, ~mask):
            scores[:, region] = scores[:, region].mean(1, keepdim=True)
        return scores


class Residual(Method):
    """A wrapper around another method: its features, plus those of the plain CLIP."""

    base: str = "SCLIP"
    share: float = 0.2

    def prepare(self):
        self.wrapped = build_method(self.base, self.clip)

    def tokens(self, windows):
        return self.wrapped.tokens(windows)

    def features(self, windows):
        plain = build_method("CLIP", self.clip).features(windows)
        return self.wrapped.features(windows) + self.share * plain


class GuidedByColour(Method):
    """A second model, by name: patches mix with those of like colour."""

    guide: str = "colour"

    def prepare(self):
        self.backbones["guide"] = load_backbone(self.guide, self.clip, "guide")

    def tokens(self, windows):
        tokens = self.stream(windows, last=self.trunk.layers)[:, 1:]
        maps = F.adaptive_avg_pool2d(self.backbones["guide"](windows), self.grid(windows))
        rows = F.normalize(maps.flatten(2).transpose(1, 2), dim=-1)
        return (10 * rows @ rows.transpose(1, 2)).softmax(-1) @ tokens


class BrightIsSky(Refiner):
    """A refiner with pixels and text: bright pixels get more of the first word."""

    bonus: float = 0.1

    def __call__(self, scores, view, text):
        light = F.interpolate(view.image.mean(0)[None, None], size=scores.shape[1:])[0, 0]
        place = text.words.index("sky")
        scores[place] += self.bonus * (light > light.median())
        return scores


SMALL = [AdaptedText, BestOfWindows, RegionVote, Residual, GuidedByColour]


@pytest.fixture(autouse=True)
def registered():
    kinds = [(METHODS, SMALL), (REFINERS, [BrightIsSky])]
    for registry, classes in kinds:
        for cls in classes:
            registry.register(cls.__name__)(cls)
    yield
    for registry, classes in kinds:
        for cls in classes:
            del registry._classes[cls.__name__]


@pytest.mark.parametrize("cls", [*SMALL, BrightIsSky], ids=lambda cls: cls.__name__)
def test_each_is_small(cls):
    assert len(inspect.getsource(cls).splitlines()) < 30


@pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)
def test_a_small_method_goes_the_whole_way(cls, toyland_clip):
    """Labels by Segmenter; two images in a batch as alone; two vocabularies share a pass."""
    segmenter = sfp.Segmenter(cls.__name__, toyland_clip)
    plain = sfp.Segmenter("CLIP", toyland_clip)
    images = [toyland.make_scene("tune", i).image for i in range(2)]
    alone = [segmenter(image, NAMES) for image in images]
    for one, many in zip(alone, segmenter.many(images, NAMES), strict=True):
        assert (one.labels == many.labels).mean() > 0.999
    assert (alone[0].labels != plain(images[0], NAMES).labels).any()
    first, second = segmenter.vocabularies(images[0], [NAMES, NAMES[:3]])
    assert (first.labels == alone[0].labels).all() and second.labels.max() < 3
    method = segmenter.pipeline.method
    text = segmenter.pipeline.text_bank.encode(NAMES[:2])
    if cls is not AdaptedText:  # which needs the words
        assert method.scores(torch.zeros(2, 3, 224, 224), text).shape[::3] == (2, 2)


def test_a_refiner_works_after_any_method(toyland_clip):
    image = toyland.make_scene("tune", 0).image
    plain = sfp.Segmenter("ClearCLIP", toyland_clip)(image, NAMES)
    brighter = sfp.Segmenter("ClearCLIP", toyland_clip, refine=["BrightIsSky:bonus=1.0"])
    assert brighter(image, NAMES).areas.get("sky", 0) > plain.areas.get("sky", 0)


def test_a_second_model_is_in_the_provenance(toyland_clip):
    method = sfp.build_method("GuidedByColour", toyland_clip)
    assert isinstance(method.backbones["guide"], Backbone)
    assert sfp.Segmenter("GuidedByColour", toyland_clip).protocol()["backbones"] == {
        "guide": "colour"
    }
