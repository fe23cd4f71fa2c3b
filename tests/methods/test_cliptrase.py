"""CLIPtrase's affinity, clusters and vote, against the authors' outputs and by hand."""

from __future__ import annotations

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip

from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods._cluster_vote import cluster_map, cluster_patches, vote

CASES = sorted(parity.INDEX["cliptrase_dbscan"])


def build(case: str, **options):
    settings = parity.INDEX["cliptrase_dbscan"].get(case, {"eps": None, "min_samples": None})
    clip = parity_clip(case.split("/")[0])
    return build_method(
        "CLIPtrase",
        clip,
        cluster_eps=settings["eps"],
        cluster_min_samples=settings["min_samples"],
        **options,
    )


@pytest.mark.parametrize("case", parity.cases("cliptrase"))
@torch.inference_mode()
def test_affinity_equals_official_code(case):
    arrays = parity.golden("cliptrase")
    _, affinity = build(case).affinity(parity.case_image(case))
    np.testing.assert_allclose(
        affinity[0, arrays[f"{case}/tok"]], arrays[f"{case}/attn"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_clusters_and_labels_equal_official_code(case):
    arrays, settings = parity.golden("cliptrase"), parity.INDEX["cliptrase_dbscan"][case]
    method = build(case, cluster_vote="majority")
    _, affinity = method.affinity(parity.case_image(case))
    clusters = cluster_patches(affinity[0], settings["eps"], settings["min_samples"])
    np.testing.assert_array_equal(clusters, arrays[f"{case}/clusters"])
    labels = method.scores(parity.case_image(case), parity.text_features())[0].argmax(-1)
    np.testing.assert_array_equal(labels[::2, ::2], arrays[f"{case}/labels"])


def test_a_batch_votes_per_window():
    names = ("vit12/win0", "vit12/win1", "vit12/win2")
    method, text = build("vit12/win1", cluster_vote="mean"), parity.text_features()
    together = method.scores(torch.cat([parity.case_image(name) for name in names]), text)
    assert together.shape == (3, 224, 224, 7)
    for scores, name in zip(together, names, strict=True):
        torch.testing.assert_close(
            scores, method.scores(parity.case_image(name), text)[0], atol=1e-5, rtol=1e-4
        )


def test_published_settings_find_no_cluster_here_and_keep_the_pixels():
    """0.7 and 3 find none on made-up weights: the argmax of each pixel stays."""
    clip, window, text = (
        parity_clip("vit12"),
        parity.case_image("vit12/win0"),
        parity.text_features(),
    )
    plain = build_method("CLIPtrase", clip).scores(window, text).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(plain, size=(224, 224), mode="bilinear").argmax(1)
    method = build_method("CLIPtrase", clip, cluster_vote="majority", cluster_eps=1e-3)
    assert torch.equal(method.scores(window, text).argmax(-1), pixels)


class TestVote:
    scores = torch.tensor(
        [[[0.9, 0.2, 0.2, 0.6]], [[0.1, 0.3, 0.4, 0.1]]]
    )  # two texts, one row of four pixels
    clusters = torch.tensor([[0, 0, 0, 1]])

    def test_majority(self):
        assert vote(self.scores, self.clusters, "majority").tolist() == [
            [[0, 0, 0, 1]],
            [[1, 1, 1, 0]],
        ]

    def test_mean(self):
        expected = torch.tensor([[[1.3 / 3] * 3 + [0.6]], [[0.8 / 3] * 3 + [0.1]]])
        torch.testing.assert_close(vote(self.scores, self.clusters, "mean"), expected)

    def test_without_clusters(self):
        none = torch.full((1, 4), -1)
        assert torch.equal(vote(self.scores, none, "mean"), self.scores)
        assert vote(self.scores, none, "majority").tolist() == [[[1, 0, 0, 1]], [[0, 1, 1, 0]]]


def test_clusters_of_two_halves():
    affinity = torch.zeros(32, 32)
    affinity[:16, :16] = affinity[16:, 16:] = 1.0
    clusters = cluster_patches(affinity, eps=0.5, min_samples=3)
    assert clusters.tolist() == [0] * 16 + [1] * 16
    pixels = cluster_map(affinity, clusters, (4, 8), (64, 128))
    assert (pixels[:30] == 0).all() and (pixels[34:] == 1).all()
    assert (cluster_map(affinity, torch.full((32,), -1), (4, 8), (64, 128)) == -1).all()


def test_class_scores_multiply(clip):
    window, text = parity.case_image("vit12/win0"), parity.text_features()
    plain = build_method("CLIPtrase", clip).scores(window, text)
    weighted = build_method("CLIPtrase", clip, class_scores=True).scores(window, text)
    factor = weighted / plain
    assert (
        torch.allclose(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-2)
        and factor.abs().max() > 1
    )


def test_the_vote_reaches_the_labels(clip):
    from sfp.clip.text_bank import TextBank
    from sfp.pipeline import Pipeline, Protocol, Task
    from sfp.stages import Text

    image, text = parity.case_image("vit12/win0")[0], Text(parity.text_features())
    method = build("vit12/win0", cluster_vote="majority")
    walk = Pipeline(method, TextBank(clip, cache_dir=False), Protocol(window=0))
    task = Task(text, walk.protocol)
    (((labels, _),),) = walk.segment([image], [task], [(224, 224)])
    assert np.array_equal(labels[::2, ::2], parity.golden("cliptrase")["vit12/win0/labels"])
    wide = parity.image("full.0", 336, 448)
    walk = Pipeline(method, TextBank(clip, cache_dir=False), Protocol())
    (((labels, _),),) = walk.segment([wide], [Task(text, walk.protocol)], [(300, 400)])
    assert labels.shape == (300, 400)


@pytest.mark.parametrize(
    "options", [dict(cluster_vote="most"), dict(cluster_eps=0.0), dict(cluster_min_samples=0)]
)
def test_wrong_options(options, clip):
    with pytest.raises(SFPError, match="cluster_"):
        build_method("CLIPtrase", clip, **options)
