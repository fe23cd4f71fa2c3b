"""``Segmenter``: pictures of every kind in, results that draw and save themselves out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfp
from sfp.clip.prompts import IMAGENET_PROMPTS, prompts_sha256
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
    results = [
        segmenter(given, NAMES)
        for given in (scene.image, Image.fromarray(scene.image), tmp_path / "scene.png")
    ]
    first = results[0]
    assert first.labels.shape == scene.labels.shape and first.labels.dtype == np.int64
    assert first.names == ("sky", "sea", "house", "boat")
    assert first.scores.shape == (4, *scene.labels.shape) and first.scores.dtype == np.float32
    assert np.array_equal(first.labels, first.scores.argmax(0))
    assert abs(sum(first.areas.values()) - 1) < 1e-9
    for other in results[1:]:
        assert np.array_equal(first.labels, other.labels)


def test_both_entry_points_give_the_same_labels(segmenter, scene, tmp_path):
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
    )
    resized = mmcv.imrescale(scene.image[..., ::-1], (2048, 336))
    sample = SegDataSample(metainfo=dict(ori_shape=scene.labels.shape, img_shape=resized.shape[:2]))
    data = dict(inputs=[torch.from_numpy(resized.transpose(2, 0, 1).copy())], data_samples=[sample])
    (found,) = segmentor.test_step(data)
    assert (
        found.pred_sem_seg.data[0].numpy() == segmenter(scene.image, NAMES).labels
    ).mean() > 0.995


def test_options_reach_protocol_and_method(scene):
    options = dict(purify=False, window=0, prob_thd=0.2, sae_residual="none")
    segmenter = sfp.Segmenter("SFP", "Toyland", device="cpu", short_side=224, **options)
    method = segmenter.pipeline.method
    assert method.purifier is None and method.sae_residual == "none"
    protocol = segmenter(scene.image, ["background", *NAMES]).protocol
    assert (
        protocol["window"],
        protocol["prob_thd"],
        protocol["short_side"],
        protocol["model"],
    ) == (0, 0.2, 224, "Toyland")


@pytest.mark.parametrize(
    ("names", "words"), [([], "no names"), (["cat", "cat"], "duplicate"), (["cat", ""], "empty")]
)
def test_wrong_names(names, words, segmenter, scene):
    with pytest.raises(sfp.SFPError, match=words):
        segmenter(scene.image, names)


def test_wrong_options():
    with pytest.raises(sfp.SFPError, match="option of method SFP 'probthd'"):
        sfp.Segmenter("SFP", "Toyland", probthd=0.2)
    with pytest.raises(sfp.SFPError, match="short_side"):
        sfp.Segmenter("SFP", "Toyland", short_side=0)


@pytest.mark.parametrize(
    ("option", "meant"), [("windw", "window"), ("cls_facto", "cls_factor"), ("modl", "model")]
)
def test_a_misspelt_option_is_refused_before_weights_are_read(option, meant, tmp_path):
    with pytest.raises(sfp.SFPError, match=f"'{option}'; did you mean '{meant}'"):
        sfp.Segmenter("SFP", pretrained=str(tmp_path / "absent.pt"), **{option: 3})


def test_repr(segmenter):
    assert repr(segmenter).startswith("Segmenter(SFP(FrozenCLIP('Toyland'")


class TestBackground:
    def test_a_text_is_a_label_alone(self, segmenter, scene):
        """Pixels whose best name is improbable fall to it.

        The names' own probabilities are those of asking without it.
        """
        plain = segmenter(scene.image, NAMES)
        best = plain.scores.max(0)
        threshold = float(np.quantile(best, 0.3))
        found = segmenter(scene.image, NAMES, background="nothing", prob_thd=threshold)
        assert found.names == ("nothing", *plain.names)
        assert np.array_equal(found.scores[1:], plain.scores)
        assert np.allclose(found.scores[0], threshold)
        assert np.array_equal(
            found.labels, np.where(best < np.float32(threshold), 0, plain.labels + 1)
        )
        assert 0.2 < found.areas["nothing"] < 0.4
        assert found.protocol["background"] == "nothing" and found.protocol["prob_thd"] == threshold

    def test_the_segmenters_own_threshold_counts(self, segmenter, scene):
        own = sfp.Segmenter("SFP", segmenter.pipeline.method.clip, prob_thd=0.5)
        asked = segmenter(scene.image, NAMES, background="nothing", prob_thd=0.5)
        assert own(scene.image, NAMES, background="nothing") == asked

    def test_a_list_is_asked_for(self, segmenter, scene):
        """As if it were written first among the names."""
        words = ["background", "sand", "sun"]
        assert segmenter(scene.image, NAMES, background=words, prob_thd=0.3) == segmenter(
            scene.image, [words, *NAMES], prob_thd=0.3
        )

    def test_without_scores(self, segmenter, scene):
        options = dict(background="nothing", prob_thd=0.4)
        with_scores, without = (
            segmenter(scene.image, NAMES, keep_scores=keep, **options) for keep in (True, False)
        )
        assert without.scores is None and np.array_equal(with_scores.labels, without.labels)

    def test_one_name_has_nothing_beside_it(self, segmenter, scene):
        with pytest.raises(
            sfp.SFPError,
            match=r"name more things, or give the background as a list of words to ask for",
        ):
            segmenter(scene.image, ["sun"], background="rest", prob_thd=0.5)
        result = segmenter(scene.image, ["sun"], background=["rest", "sky", "grass", "snow"])
        assert result.names == ("rest", "sun") and set(result.areas) == {"rest", "sun"}

    @pytest.mark.parametrize("options", [dict(prob_thd=0.9), dict(area_thd=0.1)])
    def test_a_threshold_without_a_background_is_refused(self, options, segmenter, scene):
        """What falls below it would become the first name, whatever that is."""
        own = sfp.Segmenter("SFP", segmenter.pipeline.method.clip, **options)
        with pytest.raises(sfp.SFPError, match="would give pixels to 'sky', class 0 of the names"):
            own(scene.image, NAMES)
        named = own(scene.image, [["background", "sand"], *NAMES])
        assert named.names[0] == "background"

    @pytest.mark.parametrize(
        ("background", "options", "words"),
        [
            ("nothing", {}, r"at least 0\.2, and prob_thd is 0; set prob_thd between 0\.2 and 1"),
            ("nothing", {"prob_thd": 0.2}, "Nothing would fall to the background 'nothing'"),
            ("sky", {"prob_thd": 0.5}, "duplicate name 'sky'"),
            (["nothing", ""], {}, "empty name at place 1"),
            ("nothing", {"prob_thd": 1.5}, "from 0 to 1"),
        ],
    )
    def test_mistakes(self, background, options, words, segmenter, scene):
        with pytest.raises(sfp.SFPError, match=words):
            segmenter(scene.image, NAMES, background=background, **options)


class TestMany:
    @pytest.fixture(scope="class")
    def scenes(self):
        return [toyland.make_scene("val", number).image for number in range(3)]

    def close(self, ours, theirs):
        """Batches of another make-up round differently."""
        assert (
            ours.names == theirs.names
            and ours.protocol == theirs.protocol
            and np.array_equal(ours.image, theirs.image)
        )
        assert (
            np.abs(ours.scores - theirs.scores).max() < 1e-4
            and (ours.labels == theirs.labels).mean() > 0.9999
        )

    def test_equal_to_one_by_one(self, segmenter, scenes):
        for found, scene in zip(segmenter.many(iter(scenes), NAMES), scenes, strict=True):
            self.close(found, segmenter(scene, NAMES))

    def test_windows_of_several_images_share_a_batch(self, segmenter, scenes, monkeypatch):
        batches = []
        run = segmenter.pipeline.method.run
        monkeypatch.setattr(
            segmenter.pipeline.method,
            "run",
            lambda windows, *parts: batches.append(len(windows)) or run(windows, *parts),
        )
        alone = [len(list(segmenter.many([scene], NAMES))) and batches.pop() for scene in scenes]
        assert len(list(segmenter.many(scenes, NAMES, keep_scores=False))) == 3
        assert sum(batches) == sum(alone) and max(batches) > max(alone)

    def test_images_are_taken_as_they_are_needed(self, segmenter, scenes):
        taken = []
        images = (taken.append(number) or scenes[0][:64, :64] for number in range(1000))
        results = segmenter.many(images, NAMES)
        assert not taken
        next(results)
        assert len(taken) < 100
        results.close()
        assert len(taken) < 100

    def test_a_broken_image(self, segmenter, scenes, tmp_path):
        (tmp_path / "broken.jpg").write_text("no picture")
        images = [scenes[0], tmp_path / "broken.jpg", np.zeros((1, 5000, 3), np.uint8), scenes[1]]
        first, broken, thin, last = segmenter.many(images, NAMES, yield_errors=True)
        assert "broken.jpg" in str(broken) and isinstance(thin, sfp.SFPError)
        assert np.array_equal(first.image, scenes[0]) and np.array_equal(last.image, scenes[1])
        results = segmenter.many(images, NAMES)
        assert np.array_equal(next(results).image, scenes[0])
        with pytest.raises(sfp.SFPError, match="broken"):
            next(results)

    @pytest.mark.parametrize(
        "single",
        [
            "photo.jpg",
            Image.new("RGB", (9, 9)),
            np.zeros((9, 9, 3), np.uint8),
            torch.zeros(3, 9, 9),
        ],
    )
    def test_a_single_image_is_no_list(self, single, segmenter):
        with pytest.raises(sfp.SFPError, match="give a list of images"):
            segmenter.many(single, NAMES)

    def test_wrong_names_are_refused_at_once(self, segmenter, scenes):
        with pytest.raises(sfp.SFPError, match="duplicate"):
            segmenter.many(scenes, ["cat", "cat"])


@pytest.mark.parametrize(
    "method", ["SFP", "CLIPSurgery"]
)  # one whose scores of a word depend on the others, too
def test_several_vocabularies_in_one_pass(method, segmenter, scene, monkeypatch):
    segmenter = sfp.Segmenter(method, segmenter.pipeline.method.clip)
    vocabularies = [NAMES, ["sand", "sun"], toyland.CLASSES]
    alone = [segmenter(scene.image, names) for names in vocabularies]
    passes = []
    run = segmenter.pipeline.method.run
    monkeypatch.setattr(
        segmenter.pipeline.method,
        "run",
        lambda windows, *parts: passes.append(len(windows)) or run(windows, *parts),
    )
    assert segmenter.vocabularies(scene.image, vocabularies) == alone
    assert len(passes) == 1
    assert segmenter.vocabularies(scene.image, []) == []


def test_names_are_encoded_once(segmenter, scene):
    segmenter = sfp.Segmenter("SFP", segmenter.pipeline.method.clip, text_cache=False)
    clip = segmenter.pipeline.method.clip
    segmenter(scene.image, NAMES)
    encoded = clip.text_tower.encoded
    segmenter(scene.image, list(NAMES))
    list(segmenter.many([scene.image], NAMES))
    assert clip.text_tower.encoded == encoded


def test_the_protocol_has_settings_and_words(segmenter):
    protocol = segmenter.protocol(NAMES)
    assert protocol["words"] == [["sky"], ["sea", "ocean"], ["house"], ["boat"]]
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["prompts_sha256"] == prompts_sha256(IMAGENET_PROMPTS)  # as results.json has it
    clip = segmenter.pipeline.method.clip
    others = [
        sfp.Segmenter("SFP", clip, sae_lambda=0.7),
        sfp.Segmenter("SFP", clip, stride=56),
        sfp.Segmenter("SFP", clip, prompts=["a {}."]),
    ]
    assert all(other.protocol(NAMES) != protocol for other in others)
    assert segmenter.protocol(["sky", "sea", "house", "boat"]) != protocol


class TestUnusualImages:
    def test_a_grey_one_a_tensor_and_a_transparent_one(self, segmenter, scene):
        expected = segmenter(scene.image, NAMES)
        planes = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)
        opaque = np.dstack([scene.image, np.full(scene.labels.shape, 255, np.uint8)])
        for given in (planes, planes / 255, opaque):
            assert segmenter(given, NAMES) == expected
        grey = scene.image[..., 0]
        assert segmenter(grey, NAMES) == segmenter(np.dstack([grey] * 3), NAMES)

    @pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 2000)])
    def test_too_thin(self, shape, segmenter):
        with pytest.raises(sfp.SFPError, match=r"too small or too thin.*one patch of 16; cut it"):
            segmenter(np.zeros((*shape, 3), np.uint8), NAMES)

    def test_one_pixel_high_but_not_long(self, segmenter):
        assert segmenter(np.zeros((1, 3, 3), np.uint8), NAMES).labels.shape == (1, 3)

    def test_twenty_megapixels(self, segmenter, tmp_path):
        Image.new("RGB", (5472, 3648), (120, 170, 230)).save(tmp_path / "large.jpg")
        result = segmenter(tmp_path / "large.jpg", ["sky", "sea"], keep_scores=False)
        assert result.labels.shape == (3648, 5472) and result.scores is None
        names = [f"thing {number}" for number in range(60)]
        with pytest.raises(sfp.SFPError, match="keep_scores=False"):
            segmenter(tmp_path / "large.jpg", names)
