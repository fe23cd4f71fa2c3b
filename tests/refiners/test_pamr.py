"""PAMR against the official code, and through every entry point."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import parity
import pytest
import torch

import sfp
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.refiners import build_refiner
from sfp.refiners.pamr import pamr


@pytest.mark.parametrize("iterations", [1, 10])
def test_pamr_equals_the_official_code(iterations):
    refined = pamr(
        parity.image("pamr.0", 96, 128)[None], parity.score_maps("pamr", 4, 96, 128), iterations
    )
    expected = parity.golden("pamr")[f"iter{iterations}"]
    np.testing.assert_allclose(refined[0, :, ::4, ::4], expected, atol=1e-4, rtol=0)


def test_pamr_in_chunks_and_batches_is_the_same(monkeypatch):
    images, maps = torch.randn(2, 3, 40, 50), torch.randn(2, 5, 40, 50)
    whole = pamr(images, maps, 3, (1, 2))
    monkeypatch.setitem(pamr.__globals__, "_CHUNK_BYTES", 1)
    torch.testing.assert_close(pamr(images, maps, 3, (1, 2)), whole)
    torch.testing.assert_close(pamr(images[:1], maps[:1], 3, (1, 2)), whole[:1])
    assert torch.equal(pamr(images, maps, 0), maps)


def test_pamr_keeps_constant_maps():
    maps = torch.full((1, 2, 30, 30), 0.7)
    torch.testing.assert_close(pamr(torch.randn(1, 3, 30, 30), maps, 10), maps)


@pytest.mark.parametrize("reach", [60, 10**5, 10**9, 10**20])
def test_beyond_the_image_all_neighbours_lie_on_its_edge(reach):
    images, maps = torch.randn(1, 3, 40, 50), torch.randn(1, 2, 40, 50)
    torch.testing.assert_close(pamr(images, maps, 2, (reach,)), pamr(images, maps, 2, (50,)))


def test_want_of_memory_is_said_as_it_is():
    """What torch says where it gets no memory: a picture that would take petabytes."""
    view = SimpleNamespace(image=torch.zeros(3, 8, 8))
    scores = torch.zeros(1, 1, 1).expand(1, 10**6, 10**6)
    with pytest.raises(SFPError, match=r"PAMR needs more memory .* 1000000x1000000 .*smaller"):
        build_refiner("PAMR")(scores, view, None)


def test_from_the_segmenter_and_a_config_key():
    image, names = toyland.make_scene("val", 2).image, list(toyland.CLASSES)
    options = dict(model="Toyland", device="cpu")
    by_name = sfp.Segmenter("CLIP", refine=[dict(type="PAMR", iterations=4)], **options)
    by_key = sfp.Segmenter("CLIP", pamr_iterations=4, **options)
    plain = sfp.Segmenter("CLIP", **options)(image, names)
    refined = by_name(image, names)
    assert np.array_equal(refined.labels, by_key(image, names).labels)
    assert (refined.labels != plain.labels).any()
    assert {"PAMR", "TLP", "SAM"} <= set(sfp.list_refiners())
