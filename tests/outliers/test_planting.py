"""Planted outliers: where, what, and that nothing else changes; SOM and L2 find strong ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfp.clip.trunk import Attention, Hook
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import build_method, list_methods
from sfp.outliers import build_detector, repair
from sfp.outliers.planting import PlantedTrunk, Planting, drawing_direction, plant

LAYER = 6


@pytest.fixture(scope="module")
def windows(toyland_clip):
    scenes = [toyland.make_scene("tune", i).image[60:284, 60:284] for i in range(3)]
    return toyland_clip.normalise(torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def directions(toyland_clip, windows):
    return {own: drawing_direction(toyland_clip.trunk, windows, LAYER, own) for own in (0.0, 0.25)}


def states(trunk, windows, layers=range(LAYER, 12)) -> dict:
    """The states of layers by number."""
    found = {}
    with torch.inference_mode():
        trunk.run(windows, [Hook(lambda state: found.__setitem__(state.layer, state), layers, Attention.MAP)], 11)
    return found


def test_places_depend_on_the_window_and_the_seed_alone(windows):
    planting = Planting(LAYER, 10)
    mask = planting.places(windows, 196)
    assert mask.sum(1).tolist() == [10, 10, 10] and not torch.equal(mask[0], mask[1])
    assert torch.equal(mask[2:], replace(planting, strength=4.0, layer=3).places(windows[2:], 196))
    assert not torch.equal(mask, replace(planting, seed=1).places(windows, 196))
    with pytest.raises(SFPError, match="197 outliers can't be planted among 196"):
        Planting(LAYER, 197).places(windows, 196)


def test_the_planted_token_is_as_defined_and_the_others_are_untouched(toyland_clip, windows, directions):
    clean = states(toyland_clip.trunk, windows)[LAYER].tokens
    trunk = PlantedTrunk(toyland_clip.trunk, Planting(LAYER, 10, 2.0), directions[0.0])
    planted = states(trunk, windows)[LAYER].tokens
    mask = torch.cat([torch.zeros(3, 1, dtype=torch.bool), trunk.planted], 1)
    assert torch.equal(planted[~mask], clean[~mask])
    for i in range(3):
        expected = clean[i] + 2.0 * clean[i, 1:].norm(dim=-1).mean() * directions[0.0]
        assert torch.allclose(planted[i][mask[i]], expected[mask[i]], atol=1e-4)


def test_without_strength_every_method_is_what_it_is(toyland_clip, windows, directions):
    clip = plant(toyland_clip, Planting(LAYER), directions[0.0])
    for name in list_methods():
        options = dict(proxy="colour") if name == "ProxyCLIP" else {}
        assert torch.equal(build_method(name, clip, **options)(windows[:1]), build_method(name, toyland_clip, **options)(windows[:1])), name
    assert toyland_clip.trunk is not clip.trunk and clip.trunk.blocks[0].in_weight is toyland_clip.trunk.blocks[0].in_weight


def test_every_method_meets_strong_outliers(toyland_clip, windows, directions):
    clip = plant(toyland_clip, Planting(LAYER, 10, 4.0), directions[0.25])
    for name in list_methods():
        options = dict(proxy="colour") if name == "ProxyCLIP" else {}
        found = build_method(name, clip, **options)(windows[:1])
        assert torch.isfinite(found).all() and not torch.equal(found, build_method(name, toyland_clip, **options)(windows[:1])), name


def test_undone_is_the_repair_of_the_clean_tokens(toyland_clip, windows, directions):
    clean = states(toyland_clip.trunk, windows)[LAYER]
    trunk = PlantedTrunk(toyland_clip.trunk, Planting(LAYER, 10, 4.0, undone=True), directions[0.0])
    assert torch.equal(states(trunk, windows)[LAYER].patches, repair(clean.patches, trunk.planted, clean.grid))


def test_the_direction_draws_the_class_token_and_may_look_away_from_itself(toyland_clip, windows, directions):
    shares = {}
    for own, direction in directions.items():
        assert direction.norm().item() == pytest.approx(1, abs=1e-5) and abs(direction.mean().item()) < 1e-6
        trunk = PlantedTrunk(toyland_clip.trunk, Planting(LAYER, 10, 4.0), direction)
        attention = states(trunk, windows)[LAYER + 1].attention
        to_planted = (attention[:, 0, 1:] * trunk.planted).sum(1).mean().item()
        to_self = attention[:, 1:, 1:].diagonal(dim1=1, dim2=2)[trunk.planted].mean().item()
        shares[own] = to_planted, to_self
    assert shares[0.0][0] > 0.9 and shares[0.25][0] > 0.6 and shares[0.25][1] < shares[0.0][1]


def test_strong_outliers_are_found_by_l2_and_those_that_look_away_by_som(toyland_clip, windows, directions):
    """What docs/outliers.md states of strength 8 after layer 7: L2 finds all and nothing else, SOM all that look away from themselves, at
    three of five flagged, and less than half of those that draw themselves, too."""
    found = {}
    for own, direction in directions.items():
        trunk = PlantedTrunk(toyland_clip.trunk, Planting(LAYER, 10, 8.0), direction)
        state = states(trunk, windows, [LAYER + 1])[LAYER + 1]
        assert torch.equal(build_detector("L2")(state)[0], trunk.planted)
        mask = build_detector("SOM")(state)[0]
        right = (mask & trunk.planted).sum().item()
        found[own] = right / mask.sum().item(), right / trunk.planted.sum().item()
    assert found[0.25][0] > 0.6 and found[0.25][1] > 0.85
    assert found[0.0][0] > 0.5 and 0.2 < found[0.0][1] < 0.6


def test_mistakes(toyland_clip, windows):
    for layer in (0, 11):
        with pytest.raises(SFPError, match=f"can't be planted after layer {layer}; give a layer from 1 to 10"):
            drawing_direction(toyland_clip.trunk, windows, layer)
