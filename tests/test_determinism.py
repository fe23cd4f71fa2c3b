"""The same bits twice, nearly the same in any batch, nobody's random numbers used up."""

from __future__ import annotations

import random

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip, write_ranking

import sfp
from sfp.clip.kernels import attend_explicitly
from sfp.clip.text_bank import TextBank
from sfp.datasets import toyland
from sfp.page.backend import TOYLAND_OPTIONS
from sfp.stages import Text

FEW_TREES = {"IsolationForest": dict(trees=4)}
VARIANTS = {
    "CLIPtrase": [dict(cluster_vote="majority"), dict(cluster_vote="mean", class_scores=True)],
    "CLIPSurgery": [dict(feature_surgery=True)],
    "SFP": [dict(hai_place="after", sae_values="literal", hai_cls=True)],
    "FreeCP": [dict(base="ProxyCLIP:proxy=colour"), dict(base="SCLIP", rp_thres=0.0, ap_thres=0.1)],
    "CLIPSeg": [dict(relation="two_hop", key_heads="separate")],
    "PEARL": [dict(solver="svd", full_block=True)],
    "RF-CLIP": [dict(class_vector="window", refocus=True, refocus_threshold=0.02)],
    "ResCLIP": [dict(base="SCLIP", sfr=False), dict(base="ClearCLIP", rcs=False)],
    "FSA": [dict(base="NACLIP"), dict(base="CLIP")],
    "ClearCLIP": [
        dict(purify=True, pm=name, purify_layers=[6], **FEW_TREES.get(name, {}))
        for name in sfp.list_detectors()
    ],
}
CASES = [
    (name, options)
    for name in sfp.list_methods()
    for options in ({}, dict(purify=True), *VARIANTS.get(name, ()))
]


NAMES = ("sky", "sea", "grass", "sand", "road", "house", "tree", "car", "boat")


def needs(name: str, clip, folder) -> dict:
    """What a method has no default of."""
    if name == "FLOSS":
        return dict(ranking=str(write_ranking(folder / "ranking.json", clip, NAMES)))
    return TOYLAND_OPTIONS.get(name, {})


def title(case) -> str:
    return f"{case[0]} {' '.join(f'{key}={value}' for key, value in case[1].items())}".strip()


# over 5 s for CaR: many rounds of CLIP, for each batch
@pytest.mark.parametrize(
    ("model", "case"),
    [
        # in the quick run the cases of a method take the two models in turn
        pytest.param(model, case, marks=() if i % 2 == place else pytest.mark.slow)
        for place, model in enumerate(("vit12", "Toyland", "vit24-p14"))
        for i, case in enumerate(CASES)
    ],
    ids=lambda value: value if isinstance(value, str) else title(value),
)
def test_scores_do_not_depend_on_the_batch(case, model, toyland_clip, tmp_path):
    """Windows 1, 2, 3, 5 and 7 at once; in the quick run 1 and 3, of half the size."""
    clip = toyland_clip if model == "Toyland" else parity_clip(model)
    whole = model == "vit24-p14"
    sizes = (1, 2, 3, 5, 7) if whole else (1, 3)
    height, width = (224, 196) if whole else (112, 144)
    if model == "Toyland":
        pictures = np.stack(
            [
                toyland.make_scene("tune", i).image[60 : 60 + height, 60 : 60 + width]
                for i in range(max(sizes))
            ]
        )
        windows = clip.normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    else:
        windows = torch.stack([parity.image(f"batch{i}", height, width) for i in range(max(sizes))])
    vectors = torch.nn.functional.normalize(torch.randn(len(NAMES), clip.embed_dim), dim=1)
    text = Text(vectors, NAMES, bank=TextBank(clip))
    options = {**needs(case[0], clip, tmp_path), **case[1]}
    method = sfp.build_method(case[0], clip, **options)
    alone = torch.cat([method.scores(window[None], text) for window in windows])
    for size in sizes[1:]:
        together = method.scores(windows[:size], text)
        assert torch.equal(together, method.scores(windows[:size], text))
        # a batch may be summed in another order, which flips a token that is on the edge
        equal = torch.isclose(together, alone[:size], atol=1e-4, rtol=1e-4)
        assert equal.float().mean() > 0.99, size


@torch.inference_mode()
def test_explicit_attention_of_any_number_of_images():
    q, k, v = torch.randn(3, 7, 4, 60, 16)
    mixed, _, mean = attend_explicitly(q, k, v)
    for i in range(7):
        own, _, own_mean = attend_explicitly(q[i : i + 1], k[i : i + 1], v[i : i + 1])
        torch.testing.assert_close(own[0], mixed[i])
        torch.testing.assert_close(own_mean[0], mean[i])


@pytest.mark.parametrize("pm", sfp.list_detectors())
def test_two_runs_are_equal_and_leave_all_random_states_alone(pm, toyland_clip):
    segmenter = sfp.Segmenter(
        "SFP", toyland_clip, pm=pm, **FEW_TREES.get(pm, {}), window=112, stride=112, short_side=112
    )
    image = toyland.make_scene("tune", 1).image[:120, :120]
    first = segmenter(image, ["sky", "sea"])
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    second = segmenter(image, ["sky", "sea"])
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(
        np.random.get_state()[1], before[1]
    )
    assert random.getstate() == before[2]
    assert np.array_equal(first.labels, second.labels) and np.array_equal(
        first.scores, second.scores
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", sfp.list_methods())
def test_a_gpu_gives_nearly_the_same_labels(name):
    """99.9 percent of the pixels of four scenes, float32 on both."""
    labels = {}
    for device in ("cpu", "cuda"):
        segmenter = sfp.Segmenter(
            name, "Toyland", device=device, precision="fp32", **TOYLAND_OPTIONS.get(name, {})
        )
        labels[device] = [
            segmenter(toyland.make_scene("tune", i).image, list(toyland.CLASSES)).labels.ravel()
            for i in range(4)
        ]
    assert (np.concatenate(labels["cpu"]) == np.concatenate(labels["cuda"])).mean() >= 0.999
