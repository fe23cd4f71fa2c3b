"""LaVG's cuts against the authors' code, an exact solver, and a plain reading of its rules."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import second_backbone as sb
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import sfp
from sfp.datasets import toyland
from sfp.regions import cut, load_masks
from sfp.regions.cut import normalised_cuts, refined, second_eigenvector
from sfp.stages import Picture

CASES = {name: own for name, own in sb.settings("lavg").items() if "grid" in own}


def features_of(case: str) -> torch.Tensor:
    own = CASES[case]
    return sb.features(own["features"], own["channels"], *own["grid"])


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("solver", ["whole", "Lanczos"])
def test_equals_official_code(case, solver, monkeypatch):
    monkeypatch.setattr(cut, "_STEPS", 2 if solver == "whole" else 400)
    found = normalised_cuts(features_of(case), CASES[case]["tau"], CASES[case]["N"])
    np.testing.assert_array_equal(found, sb.golden("lavg", case)["masks"])


def plainly(features: torch.Tensor, tau: float, most: int) -> list[np.ndarray]:
    """The rules step by step over index lists, the eigenproblem as it stands."""
    c, h, w = features.shape

    def largest(values: np.ndarray) -> int:  # the first of those that are as large
        return int(np.flatnonzero(values > values.max() - 1e-9 * abs(values.max()))[0])

    f, masks, free = features.reshape(c, -1).T.numpy(), [], list(range(h * w))
    while len(masks) < most and len(free) > 5:
        rows = f[free] / np.linalg.norm(f[free], axis=1, keepdims=True)
        a = np.where((rows @ rows.T).astype(np.float32) > np.float32(tau), 1.0, 1e-5)
        d = np.diag(a.sum(1))
        values, vectors = scipy.linalg.eigh(d - a, d)
        same = vectors[:, 1:][:, np.abs(values[1:] - values[1]) < 1e-9]
        places = np.arange(len(free))
        start = 2 * places / len(free) - 1 + np.cos(places)
        v = same @ (same.T @ (np.sqrt(np.diag(d)) * start))  # of several the nearest to it
        v = v * np.sign(v[largest(np.abs(v))])
        b, e = np.zeros(h * w, bool), np.full(h * w, np.abs(v).min())
        b[free], e[free] = v > v.mean() + 1e-9 * np.abs(v).max(), v
        corners = [0, w - 1, (h - 1) * w, h * w - 1]
        if sum(b[i] for i in corners) >= 3 or not b[largest(np.abs(e))]:
            e = -e
            b[free] = ~b[free]
        labels = scipy.ndimage.label(b.reshape(h, w))[0]
        masks.append(labels == labels.flat[largest(e)])
        free = [i for i in free if not masks[-1].flat[i]]
    return masks


@pytest.mark.parametrize("grid", [(9, 14), (12, 12), (17, 8)])
def test_a_plain_reading(grid):
    for seed in range(4):
        features = sb.features(f"cut{seed}", 12, *grid)
        found, expected = normalised_cuts(features, 0.2, 6), plainly(features, 0.2, 6)
        np.testing.assert_array_equal(found, np.stack(expected))


def test_the_solvers_agree_with_the_generalised_problem_and_the_sign_is_fixed():
    features = sb.features("solver", 16, 40, 30)
    rows = torch.nn.functional.normalize(features.flatten(1).T, dim=1)
    like = rows @ rows.T > 0.3
    v = second_eigenvector(like)  # 1200 patches: Lanczos
    a = like.double().numpy() * (1 - 1e-5) + 1e-5
    d = a.sum(1)
    values, vectors = scipy.linalg.eigh(np.diag(d) - a, np.diag(d), subset_by_index=[1, 1])
    exact = vectors[:, 0] * np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0])
    np.testing.assert_allclose(v * np.linalg.norm(exact) / np.linalg.norm(v), exact, atol=1e-8)
    assert v[np.abs(v).argmax()] > 0 and np.array_equal(v, second_eigenvector(like))
    assert np.abs(a @ v - d * (1 - values[0]) * v).max() < 1e-9 * np.abs(d * v).max()


def test_a_flat_picture_has_masks_too():
    """All patches alike: every cut is as good; and where all differ."""
    flat = normalised_cuts(torch.ones(4, 8, 8))
    assert flat.shape[1:] == (8, 8) and 1 <= len(flat) <= 8
    different = torch.eye(64).reshape(64, 8, 8)
    assert 1 <= len(normalised_cuts(different)) <= 8


def test_holes_are_filled_and_what_that_changes_too_much_is_dropped():
    ring = np.ones((8, 8), bool)
    ring[3:5, 3:5] = False
    assert refined(ring, 64, (64, 64)).all()
    thin = np.zeros((8, 8), bool)
    thin[[0, -1]], thin[:, [0, -1]] = True, True  # 28 of 64
    assert not refined(thin, 64, (30, 50)).any()
    half = np.zeros((8, 8), bool)
    half[:, :4] = True
    found = refined(half, 64, (33, 70))
    assert found.shape == (33, 70) and found[:, :34].all() and not found[:, 36:].any()


def test_the_picture_is_squeezed_and_keys_compared(tmp_path, toyland_clip):
    """A real ViT of made-up weights from a file, through the loading code: its keys, DINO's way of
    resizing positions, the model's own normalisation; kept on disk by pixels, model and settings.
    """
    from sfp.regions import MadeMasks

    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    made = timm.create_model(name, num_classes=0).eval()
    save_file(made.state_dict(), tmp_path / "a.safetensors")
    options = dict(type="cut", backbone=name, backbone_weights=str(tmp_path / "a.safetensors"))
    source = load_masks(dict(options, side=160, tau=0.9), toyland_clip)
    assert isinstance(source, MadeMasks) and source.network.reads == "keys"
    image = toyland.make_scene("val", 1).image
    picture = Picture(torch.zeros(3, 9, 9), image)
    found = source(picture)
    assert found.size == image.shape[:2] and found.has_rest and source.is_kept(picture)
    square = Image.fromarray(image).resize((160, 160), Image.Resampling.LANCZOS)
    window = (torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    keys = []
    made.blocks[-1].attn.qkv.register_forward_hook(
        lambda _, inputs, out: keys.append(out.chunk(3, -1)[1])
    )
    from sfp.clip.positions import resize_positions

    places = resize_positions(made.pos_embed[0], (14, 14), (10, 10), "scale")
    tokens = made.patch_embed.proj(window).flatten(2).transpose(1, 2)
    with torch.inference_mode():
        stream = torch.cat([made.cls_token, tokens], 1) + places
        for block in made.blocks:
            stream = block(stream)
    masks = normalised_cuts(keys[0][0, 1:].T.reshape(-1, 10, 10), 0.9)
    expected = np.stack([refined(mask, 160, found.size) for mask in masks])
    assert np.array_equal(np.stack(list(found.masks()))[:-1], expected)
    # kept: made once, again for other pixels, settings or weights, or where the file is damaged
    calls = []
    original = type(source.program).__call__
    source.program.__class__ = type(
        "Counting",
        (type(source.program),),
        dict(__call__=lambda s, p: calls.append(1) or original(s, p)),
    )
    assert source(picture) == found and calls == []
    source.file_of(image).write_bytes(b"PK")
    assert not source.is_kept(picture) and source(picture) == found and calls == [1]
    source(Picture(torch.zeros(3, 9, 9), image[::-1].copy()))
    assert calls == [1, 1]
    prints = {source.fingerprint}
    for changed in (dict(tau=0.8), dict(side=176), dict(most=3)):
        prints.add(load_masks(dict(options, side=160) | changed, toyland_clip).fingerprint)
    torch.manual_seed(1)
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "a.safetensors")
    prints.add(load_masks(dict(options, side=160, tau=0.9), toyland_clip).fingerprint)
    assert len(prints) == 5


def test_a_callable_backbone_is_not_kept(toyland_clip):
    def colours(windows):
        return torch.nn.functional.avg_pool2d(windows, 16)

    source = load_masks(dict(type="cut", backbone=colours, side=160), toyland_clip)
    picture = Picture(torch.zeros(3, 9, 9), toyland.make_scene("val", 2).image)
    assert len(source(picture)) and not source.is_kept(picture)


def test_a_picture_of_which_only_the_tensor_is_known(toyland_clip):
    """Its masks are those of the pixels that it was made of."""
    source = load_masks("cut:backbone=colour,side=160", toyland_clip)
    image = toyland.make_scene("val", 3).image
    tensor = toyland_clip.normalise(torch.from_numpy(image.copy()).permute(2, 0, 1))
    assert source(Picture(tensor)) == source(Picture(tensor, image))


@pytest.mark.slow
def test_real_size_through_the_real_loading_code(tmp_path):
    """DINO's ViT-B/8 with made-up weights: 6400 patches' keys, cut; a CLIP of 12 x 768."""
    torch.manual_seed(0)
    name = "vit_base_patch8_224.dino"
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "dino.safetensors")
    clip = sfp.load_clip("Toyland", device="cpu")
    options = dict(type="cut", backbone=name, backbone_weights=str(tmp_path / "dino.safetensors"))
    source = load_masks(options, clip)
    found = source(Picture(torch.zeros(3, 9, 9), toyland.make_scene("val", 0).image))
    assert found.has_rest and 2 <= len(found) <= 9
