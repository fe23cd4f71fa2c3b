"""The sigmoid of the protocol: probabilities of each class by itself, SigLIP's t and b."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_clips import tiny_clip

import sfp
from sfp.errors import SFPError
from sfp.pipeline.decode import decode
from sfp.pipeline.protocol import Protocol
from sfp.pipeline.score_map import ScoreMap

PLACES = torch.tensor([0, 0, 1])  # two words of class 0, one of class 1


def scores_of(seed: int = 0) -> tuple[ScoreMap, torch.Tensor]:
    maps = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.1
    return ScoreMap.of_pixels(maps), maps


def test_numbers_are_those_of_each_class_by_itself():
    scores, maps = scores_of()
    labels, found = decode(scores, PLACES, sigmoid=(20.0, -3.0), keep_probabilities=True)
    each = torch.sigmoid(20 * maps - 3)
    torch.testing.assert_close(found, torch.stack([each[:2].amax(0), each[2]]))
    assert torch.equal(labels, decode(scores_of()[0], PLACES)[0])  # of a softmax
    assert not torch.allclose(found.sum(0), torch.ones(6, 7))


def test_thresholds():
    scores, maps = scores_of(1)
    labels, _ = decode(scores, PLACES + 1, sigmoid=(20.0, -3.0), prob_thd=0.5)
    assert torch.equal(labels == 0, torch.sigmoid(20 * maps - 3).amax(0) < 0.5)
    assert (labels == 0).any() and (labels != 0).any()


def test_labels_stay_where_probabilities_round_to_nothing():
    """exp(-130) is 0 in float32; the larger cosine is still the larger."""
    maps = torch.tensor([[-0.2, -0.3], [-0.3, -0.2]])[:, None]
    labels, _ = decode(ScoreMap.of_pixels(maps), torch.tensor([0, 1]), sigmoid=(400.0, -50.0))
    assert labels.tolist() == [[0, 1]]


class TestSegmenter:
    picture = (np.random.default_rng(0).random((80, 96, 3)) * 255).astype(np.uint8)

    def segmenter(self, clip: str = "siglip", **options) -> sfp.Segmenter:
        own = dict(window=64, stride=64, short_side=64, prompts=["a photo of the {}"])
        return sfp.Segmenter(
            "MaskCLIP", tiny_clip(clip), text_cache=False, **{**own, "sigmoid": True, **options}
        )

    def test_a_single_word(self):
        found = self.segmenter()(self.picture, ["cat"])
        scores, clip = found.scores[0], tiny_clip("siglip")
        assert 0 < scores.min() < scores.max() < 1 and not found.labels.any()
        softmax = self.segmenter(sigmoid=False)(self.picture, ["cat"])
        assert (softmax.scores == 1).all()
        given = self.segmenter(sigmoid=(clip.logit_scale, clip.logit_bias))
        np.testing.assert_array_equal(given(self.picture, ["cat"]).scores, found.scores)
        assert found.protocol["sigmoid"] is True

    def test_labels_are_those_of_the_cosines(self):
        names = ["cat", "dog", "sea", "sky"]
        found = self.segmenter()(self.picture, names)
        np.testing.assert_array_equal(
            found.labels, self.segmenter(sigmoid=False)(self.picture, names).labels
        )
        each = self.segmenter()(self.picture, ["dog"]).scores[0]
        np.testing.assert_allclose(found.scores[1], each, atol=1e-5)

    def test_one_word_against_a_background(self):
        each = self.segmenter()(self.picture, ["cat"]).scores[0]
        middle = float(np.median(each))
        found = self.segmenter()(self.picture, ["cat"], background="other", prob_thd=middle)
        assert 0.4 < found.labels.mean() < 0.6  # label 1 is the cat
        with pytest.raises(SFPError, match="since prob_thd is 0; set it"):
            self.segmenter()(self.picture, ["cat"], background="other")

    def test_what_has_none(self):
        with pytest.raises(SFPError, match="needs a model that was trained with a sigmoid"):
            self.segmenter("clip")
        self.segmenter("clip", sigmoid=(100, -25))(self.picture, ["cat"])
        with pytest.raises(SFPError, match="FreeCP decides by a rule of its own"):
            sfp.Segmenter("FreeCP", tiny_clip("siglip"), sigmoid=True)
        with pytest.raises(SFPError, match="FLOSS makes probabilities by a softmax of its own"):
            sfp.Segmenter("FLOSS", tiny_clip("siglip"), sigmoid=(100, -12))

    @pytest.mark.parametrize("wrong", [(1, 2, 3), (0, 1), (-1.0, 0.0), "yes", 3])
    def test_wrong_values(self, wrong):
        with pytest.raises(SFPError, match="sigmoid"):
            Protocol(sigmoid=wrong)
