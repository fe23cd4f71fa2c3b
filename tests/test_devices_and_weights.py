"""What needs a GPU or real CLIP weights; skipped, and said so, where they are not."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

import sfp
from sfp.clip.clip import l2_normalise
from sfp.datasets import toyland
from sfp.page.backend import TOYLAND_OPTIONS

WEIGHTS = os.environ.get("SFP_TEST_WEIGHTS")  # the path of OpenAI's ViT-B-16.pt


@pytest.mark.gpu
@pytest.mark.parametrize("method", sfp.list_methods())
def test_gpu_labels_agree_with_the_cpu(method):
    scene, labels = toyland.make_scene("val", 0), []
    options = TOYLAND_OPTIONS.get(method, {})
    for device in ("cpu", "cuda"):
        segmenter = sfp.Segmenter(method, "Toyland", device=device, precision="fp32", **options)
        labels.append(segmenter(scene.image, toyland.CLASSES).labels)
    assert (labels[0] == labels[1]).mean() >= 0.999


@pytest.mark.gpu
def test_gpu_takes_half_precision_by_itself():
    segmenter = sfp.Segmenter("SFP", "Toyland", device="cuda")
    assert segmenter.pipeline.method.clip.precision == "fp16"
    assert segmenter(toyland.make_scene("val", 0).image, ["sky", "sea"]).labels.max() <= 1


@pytest.mark.gpu
def test_gpu_is_waited_for_once():
    """As tests/test_pretended_device.py counts it without one."""
    segmenter = sfp.Segmenter("SFP", "Toyland", device="cuda")
    image, names = toyland.make_scene("val", 0).image, ["sky", "sea"]
    segmenter(image, names, keep_scores=False)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            segmenter(image, names, keep_scores=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in seen if "synchronizing" in str(one.message)]) == 1


@pytest.mark.weights
@pytest.mark.skipif(not WEIGHTS, reason="set SFP_TEST_WEIGHTS to OpenAI's ViT-B-16.pt")
def test_openai_weights_know_colours():
    """Words tell a red picture from a blue one; plain GELU or a wrong layout would spoil that."""
    clip = sfp.load_clip("ViT-B/16", WEIGHTS, device="cpu")
    assert clip.quick_gelu
    pictures = torch.zeros(2, 3, 224, 224)
    pictures[0, 0], pictures[1, 2] = 255, 255
    images = l2_normalise(clip.encode_image(clip.normalise(pictures)))
    words = l2_normalise(clip.encode_text(clip.tokenize(["a red picture", "a blue picture"])))
    assert (images @ words.T).argmax(1).tolist() == [0, 1]
