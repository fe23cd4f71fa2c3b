"""FreeCP: the authors' code step by step, its boxes, its decision rule, bases and mistakes."""

from __future__ import annotations

import json
import warnings

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip

import sfp
from sfp.clip.text_bank import TextBank
from sfp.clip.trunk import Attention, Hook
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import METHODS, build_method, list_methods
from sfp.methods._boxes import boxes_of, mask_of
from sfp.methods._parts import propagation as affinity_of
from sfp.methods._wrapper import Wrapper
from sfp.methods.freecp import agreement, refine, rivals, soft_iou, stretch
from sfp.page.backend import TOYLAND_OPTIONS
from sfp.stages import Picture, Text, View

MAP = Attention.MAP
INDEX = parity.read_index("index_clip_only")
FILE = INDEX["files"].get("freecp", dict(settings={}, images={}))
CASES = list(FILE["settings"])


def spec_of(case: str) -> str:
    return case.split("/")[0]


def picture(case: str) -> torch.Tensor:
    name = case.split("/")[1].split("_")[0]
    with parity.seeded(INDEX["seed"]):
        return parity.image(FILE["images"][f"{spec_of(case)}/{name}"], *INDEX["sizes"][name])


class MadeUpText:
    """A text bank whose sentences are the golden's vectors."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors

    def describe(self, sentences) -> torch.Tensor:
        assert len(sentences) == len(self.vectors)
        return self.vectors


def text_of(case: str) -> Text:
    """Background words first, then a query for each class."""
    arrays = parity.golden("freecp")
    vectors, second = (
        torch.from_numpy(arrays[f"{spec_of(case)}/{name}"]) for name in ("text", "text_llm")
    )
    background = FILE["settings"][case]["bkg"]
    words = ["background", *map(str, range(1, len(vectors)))]
    classes = [max(0, i - background + 1) for i in range(len(vectors))]
    return Text(vectors, tuple(words), tuple(classes), MadeUpText(second))


@pytest.fixture
def build(tmp_path):
    def make(case: str):
        file = tmp_path / "sentences.json"
        file.write_text(json.dumps({str(i): [f"it is {i}"] for i in range(7)}))
        settings = FILE["settings"][case]
        clip = parity_clip(spec_of(case), INDEX["seed"])
        assert clip.logit_scale == pytest.approx(settings["logit_scale"], rel=1e-6)
        thresholds = {key: settings[key] for key in ("rp_thres", "ap_thres")}
        return build_method(
            "FreeCP", clip, base=settings["base"], sentences=str(file), **thresholds
        )

    return make


def views(method, images: list[torch.Tensor]) -> list[View]:
    encoded = method.run(torch.stack(images))
    box = torch.tensor([[0, 0, *images[0].shape[1:]]])
    return [
        View(Picture(image), box, {name: rows[i : i + 1] for name, rows in encoded.items()})
        for i, image in enumerate(images)
    ]


def close(found, expected, atol: float) -> None:
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code(case, together, build):
    arrays, method, text = parity.golden("freecp"), build(case), text_of(case)
    image, background = picture(case), FILE["settings"][case]["bkg"]
    with parity.seeded(INDEX["seed"]):
        other = [parity.image("beside", *image.shape[1:])] if together else []
    view = views(method, [*other, image])[-1]

    def golden(name):
        return arrays[f"{case}/{name}"]

    grid, affinity = method.trunk.grid_of(*view.size), view["affinity"]
    cosines = method.wrapped.score(view, text).permute(0, 3, 1, 2)
    close(cosines[0], golden("logits"), 1e-5)
    maps = []
    hook = Hook(lambda state: maps.append(state.attention), range(1, method.trunk.layers), MAP)
    method.wrapped.stream(image[None], hook)
    mean, rows = torch.stack(maps).mean(0)[:, 1:, 1:], golden("attn")
    place = (mean[0, :, None] - torch.from_numpy(rows)).abs().amax(-1).argmin(0)
    assert len(set(place.tolist())) == len(rows)
    close(mean[0, place], rows, 1e-5)
    close(affinity, affinity_of(mean), 1e-5)

    probabilities = (method.clip.logit_scale * cosines.flatten(2)).softmax(1)
    stretched, foreground = stretch(probabilities), method.foreground(text)
    assert foreground.tolist() == [i >= background for i in range(len(text))]
    close(stretched[0].unflatten(1, grid), golden("normalized"), 1e-4)
    refined = refine(stretched, affinity, foreground, grid)
    close(refined[0].unflatten(1, grid), golden("refined"), 1e-4)
    scores = agreement(probabilities, refined)[0, background:]
    close(scores, golden("rp"), 1e-5)
    kept = (scores > method.rp_thres).nonzero()[:, 0] + background
    np.testing.assert_array_equal(kept - background, golden("kept_rp"))
    overlap = soft_iou(refined[0, kept])
    close(overlap, golden("soft_iou"), 1e-5)

    heats = stretched[0].unflatten(1, grid).numpy()
    boxes = []
    for call, heat in enumerate(heats[background:]):  # where there is none the golden has zeros
        boxes += [[call, *box] for box in boxes_of(heat) or [(0, 0, 0, 0)]]
    groups = rivals(refined[0], torch.isin(torch.arange(len(text)), kept), method.ap_thres)
    for call, group in enumerate(groups, len(scores)):
        heat = refined[0, group].mean(0).unflatten(0, grid).numpy()
        boxes += [[call, *box] for box in boxes_of(heat)]
    assert sorted(boxes) == sorted(golden("boxes").tolist())
    crops = [method._crop(view, 0, box) for call, *box in boxes if call >= len(scores)]
    if crops:
        seen = method._class_vectors(torch.stack(crops))
        of_call = [groups[call - len(scores)] for call, *_ in boxes if call >= len(scores)]
        found = [
            own @ method.second_set(text)[group].T for own, group in zip(seen, of_call, strict=True)
        ]
        close(np.sort(torch.cat(found)), np.sort(golden("crop_cls")), 1e-5)

    maps = method.score(view, text)[0].permute(2, 0, 1)
    stays = maps.flatten(1).amax(1).nonzero()[:, 0] - background
    np.testing.assert_array_equal(stays, golden("kept_ap"))
    pixels = torch.nn.functional.interpolate(maps[None], size=view.size, mode="bilinear")[0]
    close(pixels[:, ::8, ::8], golden("out"), 1e-4)


class TestBoxes:
    def test_regions_touch_at_corners_and_lose_their_last_row_at_the_border(self):
        heat = np.zeros((6, 7), np.float32)
        heat[1, 1] = heat[2, 2] = 1.0  # one region
        heat[4:, 5:] = 0.9  # at the right and bottom border
        assert sorted(boxes_of(heat)) == [(1, 1, 3, 3), (5, 4, 6, 5)]
        mask = mask_of(heat)
        assert mask[1:3, 1:3].all() and mask[4, 5] and mask.sum() == 5

    def test_a_hole_has_a_box_around_it(self):
        heat = np.ones((7, 7), np.float32)
        heat[0], heat[:, 0] = 0, 0
        heat[3, 3] = 0
        assert sorted(boxes_of(heat)) == [(1, 1, 6, 6), (2, 2, 5, 5)]

    def test_a_flat_map_has_none(self):
        assert boxes_of(np.zeros((4, 4), np.float32)) == [] and not mask_of(np.zeros((4, 4))).any()


QUIET = pytest.mark.filterwarnings("ignore:FreeCP has no sentences")


@QUIET
class TestDecision:
    def test_a_background_gets_what_no_map_claims(self, clip):
        method = build_method("FreeCP", clip)
        vectors = parity.text_features(4)
        text = Text(vectors, ("background", "wall", "cat", "dog"), (0, 0, 1, 2))
        maps = torch.tensor([[0.0, 0.0, 0.3, 0.6], [0.0, 0.0, 0.2, 0.1]])
        decided = method.decide(maps, text)
        torch.testing.assert_close(decided[0], torch.tensor([0.4, 0.4, 0.3, 0.6]))
        torch.testing.assert_close(decided[1], torch.tensor([0.8, 0.8, 0.2, 0.1]))
        plain = Text(vectors, ("sky", "wall", "cat", "dog"))
        assert torch.equal(method.decide(maps, plain), maps)
        forced = build_method("FreeCP", clip, background_class=True)
        assert forced.foreground(Text(vectors, ("sky", "a", "b", "c"), (0, 0, 1, 2))).tolist() == [
            False, False, True, True,
        ]  # fmt: skip

    def test_scores_of_a_result_are_the_maps_not_a_softmax(self, toyland_clip):
        """And several vocabularies share a pass with what they would have alone."""
        segmenter = sfp.Segmenter("FreeCP", toyland_clip, window=224, stride=224, short_side=224)
        image = toyland.make_scene("tune", 2).image
        result = segmenter(image, ["background", "sky", "grass", "sun"])
        others = result.scores[1:]
        np.testing.assert_allclose(result.scores[0], 1 - others.max(0), atol=1e-5)
        np.testing.assert_array_equal(result.labels, result.scores.argmax(0))
        assert others.min() >= 0 and others.max() <= 1 + 1e-6
        first, _ = segmenter.vocabularies(image, [["sky", "grass"], ["sea", "sun"]])
        assert (first.labels == segmenter(image, ["sky", "grass"]).labels).all()
        pairs = zip([first], segmenter.many([image], ["sky", "grass"]), strict=True)
        assert all((one.labels == other.labels).all() for one, other in pairs)

    def test_a_label_that_is_not_asked_for_needs_a_threshold(self, toyland_clip):
        segmenter = sfp.Segmenter("FreeCP", toyland_clip, window=224, stride=224, short_side=224)
        image = toyland.make_scene("tune", 2).image
        result = segmenter(image, ["sky", "grass", "sun"], background="rest", prob_thd=0.6)
        below = result.scores[1:].max(0) < 0.6
        np.testing.assert_array_equal(result.labels == 0, below)


class TestSentences:
    def test_without_them_it_says_so_once(self, clip):
        from sfp.methods._method import _warned

        _warned.clear()
        with pytest.warns(UserWarning, match="FreeCP has no sentences of the words"):
            build_method("FreeCP", clip)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build_method("FreeCP", clip)

    def test_they_are_encoded_and_averaged(self, tmp_path, toyland_clip):
        file = tmp_path / "sentences.json"
        told = {"sky": ["a wide blue sky", "clouds"], "sea": ["water"]}
        file.write_text(json.dumps(told))
        method = build_method("FreeCP", toyland_clip, sentences=str(file))
        bank = TextBank(toyland_clip, cache_dir=tmp_path)
        text = Text(bank.encode(["sky", "sea"]), ("sky", "sea"), bank=bank)
        rows = TextBank(toyland_clip, ["{}"], False).encode(["a wide blue sky", "clouds", "water"])
        expected = torch.stack([rows[:2].mean(0), rows[2]])
        expected = torch.nn.functional.normalize(expected, dim=1)
        torch.testing.assert_close(method.second_set(text), expected)
        with pytest.raises(SFPError, match="has no sentences of 'sun'"):
            method.second_set(Text(bank.encode(["sun"]), ("sun",), bank=bank))


@QUIET
def test_it_wraps_every_method_that_is_no_wrapper(toyland_clip):
    """Two windows as alone; a purified base with registers, too."""
    windows = toyland_clip.normalise(
        torch.stack(
            [
                torch.from_numpy(toyland.make_scene("tune", i).image[60:172, 60:204].copy())
                for i in range(2)
            ]
        ).permute(0, 3, 1, 2)
    )
    words = ("sky", "grass", "sea", "sun")
    text = Text(TextBank(toyland_clip).encode(words), words)
    for name in filter(Wrapper.can_wrap, list_methods()):
        base = dict(type=name, **TOYLAND_OPTIONS.get(name, {}))
        method = build_method(
            "FreeCP", toyland_clip, base=base, purify=True, pm="SOM", registers=1, rp_thres=0.0
        )
        assert method.wrapped.purify and method.purifier is method.wrapped.purifier
        scores = method.scores(windows, text)
        assert scores.shape == (2, 7, 9, 4) and scores.min() >= 0 and scores.max() > 0.99, name
        alone = torch.cat([method.scores(window[None], text) for window in windows])
        assert torch.isclose(scores, alone, atol=1e-4).float().mean() > 0.99, name


@QUIET
class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (dict(base=None), "base of method FreeCP is None; give a text"),
            (dict(base="ClearCLP"), "Unknown method 'ClearCLP'; did you mean 'ClearCLIP'"),
            (dict(base="FLOSS"), "base of FreeCP is FLOSS, whose scores are no cosines"),
            (dict(base="FreeCP"), "base of FreeCP is FreeCP, whose scores are no cosines"),
            (dict(base="NACLIP", sigma=3.0), "write base='NACLIP:sigma=3.0'"),
            (dict(base="SCLIP:sigma=3"), "Unknown option of method SCLIP 'sigma'"),
            (dict(base=dict(sigma=3)), "has no type"),
            (dict(ranking="a.json"), "Unknown option of method FreeCP 'ranking'"),
            (dict(rp_thres=2.0), "rp_thres of method FreeCP is 2.0; give a number from 0 to 1"),
            (dict(sentences="absent.json"), "absent.json can't be read"),
        ],
    )
    def test_one_sentence_each(self, options, words, clip):
        with pytest.raises(SFPError) as caught:
            build_method("FreeCP", clip, **options)
        assert words in str(caught.value) and "\n" not in str(caught.value)

    def test_sentences_of_another_form(self, clip, tmp_path):
        (tmp_path / "s.json").write_text('{"sky": "blue"}')
        with pytest.raises(SFPError, match="holds something else than"):
            build_method("FreeCP", clip, sentences=str(tmp_path / "s.json"))

    def test_a_base_whose_scores_are_refined_later(self, clip):
        class Late(METHODS.get("CLIP")):
            """CLIP with a step on the stitched scores."""

            def refine(self, scores, view, text):
                return scores

        METHODS.register("Late")(Late)
        try:
            with pytest.raises(SFPError, match="base of FreeCP is Late, whose scores"):
                build_method("FreeCP", clip, base="Late")
        finally:
            del METHODS._classes["Late"]


@QUIET
def test_published_options_of_the_base_are_the_wrappers(clip):
    over = build_method("FreeCP", clip, base="SC-CLIP")
    assert (over.purify, over.pm, over.purify_layers) == (True, "LOF", (11,))
    assert over.changed_options() == dict(base="SC-CLIP")
    assert build_method("FreeCP", clip, base="SC-CLIP", pm="SOM").wrapped.pm == "SOM"
    assert build_method("FreeCP", clip, base="SCLIP").wrapped.residual is False
    assert build_method("FreeCP", clip, base="SCLIP:residual=True").wrapped.residual is True
