"""CorrCLIP against the authors' code, alone and beside another image, and a plain reading."""

from __future__ import annotations

import numpy as np
import pytest
import second_backbone as sb
import torch
import torch.nn.functional as F
from sklearn.cluster import DBSCAN

from sfp.clip.clip import l2_normalise
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.pipeline import Pipeline, Protocol, Task
from sfp.stages import Picture

CASES = sb.settings("corrclip")


MIRRORED = " mirrored"  # another image of a case: mirrored, with two regions at most


def image_of(case: str) -> torch.Tensor:
    name = case.removesuffix(MIRRORED)
    image = sb.picture(CASES[name]["image"], *CASES[name]["size"])
    return image.flip(-1) if case.endswith(MIRRORED) else image


def regions_of(case: str) -> np.ndarray:
    regions = sb.golden("corrclip", case.removesuffix(MIRRORED))["regions"].astype(int)
    return regions[:, ::-1] % 3 if case.endswith(MIRRORED) else regions


def windows_of(case: str) -> torch.Tensor:
    own = CASES[case.removesuffix(MIRRORED)]
    image, side = image_of(case), own["crop"]
    return torch.stack([image[:, y : y + side, x : x + side] for y, x in own["windows"]])


def maps_of(case: str) -> torch.Tensor:
    own = CASES[case.removesuffix(MIRRORED)]
    sizes, count = (own["dino_channels"], *own["dino_grid"]), len(own["windows"])
    return torch.stack([sb.features(f"{own['dino']}.{i}", *sizes) for i in range(count)])


def picture_of(case: str) -> Picture:
    """Its pixels say nothing but their size; its path, whose image it is."""
    return Picture(image_of(case), np.zeros((*regions_of(case).shape, 3), np.uint8), case)


def method_of(*cases: str, **options):
    windows, maps = (torch.cat([of(case) for case in cases]) for of in (windows_of, maps_of))
    return build_method(
        "CorrCLIP",
        sb.clip_of(cases[0]),
        proxy=sb.MadeUp(windows, maps),
        masks=lambda picture: regions_of(picture.path),
        **options,
    )


def pipeline_of(case: str, method) -> Pipeline:
    own = CASES[case]
    protocol = Protocol(window=own["crop"], stride=own["stride"], logit_scale=own["logit_scale"])
    return Pipeline(method, None, protocol, windows_at_once=8)


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("company", ["alone", "beside another"])
@torch.inference_mode()
def test_equals_official_code(case, company):
    cases = [case] if company == "alone" else [case + MIRRORED, case]
    arrays, method = sb.golden("corrclip", case), method_of(*cases)
    pipeline, text = pipeline_of(case, method), sb.text()
    pictures = [picture_of(own) for own in cases]
    seen = []
    encode = method.encode
    method.encode = lambda windows, regions: seen.append(len(windows)) or encode(windows, regions)
    view = pipeline.views(pictures)[-1]
    assert seen == [len(cases) * len(CASES[case]["windows"])]  # one pass
    if "feat" in arrays and len(view.boxes) == 1:
        parts = torch.stack(method.parts([view.looked], view.boxes.tolist()))
        features = method.features_of(view.crops(), parts)[0].flatten(0, 1)
        sb.close(features[arrays["tok"]], arrays["feat"], 5e-5, "feat")
        unit = l2_normalise(features).unflatten(0, view["features"].shape[1:3])
        sb.close(view["features"][0], unit, 1e-5, "features")
    if "grid_logits" in arrays:
        scores = method.score(view, text)[0].permute(2, 0, 1)
        sb.close(scores, arrays["grid_logits"], 1e-5, "grid_logits")
    size = arrays["regions"].shape
    logits = pipeline.score(view, text, size).canvas()
    sb.close(logits[:, ::8, ::8], arrays["logits"], 1e-5, "logits")
    ((labels, _),) = pipeline.segment(pictures[-1:], [Task(text, pipeline.protocol)], [size])[0]
    if "labels" in arrays:
        np.testing.assert_array_equal(labels, arrays["labels"])


def plainly(method, window: torch.Tensor, regions: np.ndarray, e: torch.Tensor) -> torch.Tensor:
    """F (h', w', D) of one window as the specification tells it: one region after the other."""
    trunk, block = method.trunk, method.last_block
    size, grid, last = tuple(e.shape[1:]), method.grid(window[None]), method.trunk.layers
    rows = F.normalize(e.flatten(1).T, dim=1)
    values = F.interpolate(torch.from_numpy(regions)[None, None].float(), size=size)[0, 0].int()
    flat, least = values.flatten(), int(values.min())
    found = flat.unique().tolist()
    if len(found) > 2:
        means = torch.stack([rows[flat == value].mean(0) for value in found[1:]])
        means = F.normalize(means, dim=1)
        cosines = means @ means.T
        distances = (cosines.max() - cosines).clamp(min=0).double().numpy()
        sets = DBSCAN(eps=0.2, min_samples=1, metric="precomputed").fit(distances).labels_
        joined = flat.clone()
        for value, number in zip(found[1:], sets, strict=True):
            joined[flat == value] = 10000 + int(number)
        flat = joined
    similarity = rows @ rows.T
    weights = torch.zeros_like(similarity)
    for i, own in enumerate(flat.tolist()):
        for_free = (similarity[i] > similarity.mean()) & ((flat == least) | (own == least))
        allowed = for_free | ((flat == own) & (own != least))
        weights[i, allowed] = (4 * similarity[i, allowed]).softmax(0)
    streams = [trunk.embed(window[None])]
    for layer in range(1, last + 1):
        streams.append(trunk.step(layer, streams[-1], grid))

    def mixed(stream: torch.Tensor) -> torch.Tensor:
        v = block.values(block.normed(stream))[0, :, 1:].permute(0, 2, 1).flatten(0, 1)
        v = F.interpolate(v.unflatten(1, grid)[None], size=size, mode="bilinear")[0].flatten(1).T
        heads = (weights @ v).unflatten(1, (block.heads, -1)).transpose(0, 1)
        return trunk.readout(block.project(heads[None]))[0]

    count = method.spatial_layers
    earlier = torch.stack(streams[last - 1 - count : last - 1]).mean(0)
    sums = mixed(streams[last - 1]) + mixed(earlier)
    at_clip = F.interpolate(flat.unflatten(0, size)[None, None].float(), size=grid)[0, 0].flatten()
    at_proxy = F.interpolate(at_clip.unflatten(0, grid)[None, None], size=size)[0, 0].flatten()
    for value in at_clip.unique():
        copy = streams[0][:, :1]
        keep = torch.cat([torch.ones(1, dtype=torch.bool), at_clip == value])
        for layer in range(1, last + 1):
            own, tokens = trunk.blocks[layer - 1], streams[layer - 1][:, keep]
            (q,) = own.qkv(own.normed(copy), "q")
            k, v = own.qkv(own.normed(tokens), "kv")
            copy = copy + own.project(F.scaled_dot_product_attention(q, k, v))
            copy = copy + own.mlp(copy)
        sums[at_proxy == value] += 0.5 * trunk.readout(copy)[0, 0]
    return sums.unflatten(0, size)


@torch.inference_mode()
def test_a_ragged_batch_equals_a_plain_reading_of_each_window(clip):
    """None, one, few and many regions in one batch, some too small for CLIP's grid."""
    generator = torch.Generator().manual_seed(3)
    windows = torch.stack([sb.picture(f"plain{i}", 112, 144) for i in range(4)])
    maps = torch.stack([sb.features(f"plain{i}", 24, 14, 18) for i in range(4)])
    regions = torch.zeros(4, 112, 144, dtype=torch.int32)
    regions[1] = 7
    regions[2, :60] = 3
    regions[2, 60:, 70:] = 1
    cells = torch.randint(0, 40, (14, 18), generator=generator, dtype=torch.int32)
    regions[3] = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)
    method = build_method(
        "CorrCLIP", clip, proxy=sb.MadeUp(windows, maps), masks=lambda _: None, join=0.2
    )
    found = method.features_of(windows, regions)
    for i in range(4):
        expected = plainly(method, windows[i], regions[i].numpy(), maps[i])
        torch.testing.assert_close(found[i], expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_ordinary_stream_is_untouched_by_the_copies(clip):
    """Purification and registers act on it alone; without its parts the method is cheaper."""
    from sfp.methods.corrclip import CorrCLIP

    window = sb.picture("plain0", 112, 112)[None]
    regions = torch.arange(14).repeat_interleave(8).expand(1, 112, 112).int()
    registers = dict(count=2, neurons={6: [0, 1]})
    for options in (dict(), dict(purify=True, pm="L2"), dict(registers=registers)):
        streams = []
        whole, main = (
            build_method("CorrCLIP", clip, proxy="colour", masks=lambda _: None, **options, **parts)
            for parts in (dict(), dict(semantic=0.0, spatial=0.0))
        )
        for method in (whole, main):
            original = CorrCLIP.mixed

            def spy(self, weights, stream, grid, size, original=original, seen=streams):
                seen.append(stream)
                return original(self, weights, stream, grid, size)

            method.mixed = spy.__get__(method)
            method.features_of(window, regions)
        first, mean, alone = streams
        assert torch.equal(first, alone) and not torch.equal(first, mean[:, : first.shape[1]])


def test_padding_is_a_region_of_its_own_and_cut_off(clip):
    window = sb.picture("odd", 100, 130)
    given = []
    method = build_method(
        "CorrCLIP", clip, proxy="colour", masks=lambda _: np.ones((100, 130), int)
    )
    original = method.features_of
    method.features_of = lambda w, r: given.append((w, r)) or original(w, r)
    assert method.scores(window[None], sb.text()).shape == (1, 100, 130, 7)
    ((windows, regions),) = given
    assert windows.shape == (1, 3, 112, 168) and regions.shape == (1, 112, 168)
    assert (regions[0, 6:106, 19:149] == 1).all() and (regions == 10000).sum() == 112 * 168 - 13000


@pytest.mark.parametrize("correct", [True, False])
def test_map_correction(correct, clip):
    """The most frequent label of each region but the first number's; other sizes by nearest."""
    regions = np.repeat(np.array([[0, 1, 2, 2]]), 2, 0)
    method = build_method(
        "CorrCLIP", clip, proxy="colour", masks=lambda _: regions, correct=correct
    )
    looked = method.look(Picture(torch.zeros(3, 2, 4)))
    view = type("Seen", (), dict(looked=looked))
    labels = torch.tensor([[5, 4, 3, 3], [6, 2, 3, 1]])
    expected = [[5, 2, 3, 3], [6, 2, 3, 3]]  # of 4 and 2 the least
    found = method.relabel(labels, view)
    assert found.tolist() == (expected if correct else labels.tolist())
    twice = labels.repeat_interleave(2, 0).repeat_interleave(2, 1)
    if correct:
        assert method.relabel(twice, view)[::2, ::2].tolist() == expected
        covered = build_method("CorrCLIP", clip, proxy="colour", masks=lambda _: regions + 1)
        view.looked = covered.look(Picture(torch.zeros(3, 2, 4)))
        assert covered.relabel(labels, view).tolist() == expected  # its least number is as none


def test_constants_by_depth(clip):
    from conftest import parity_clip

    def layers(own):
        return build_method("CorrCLIP", own, proxy="colour", masks=lambda _: 0).spatial_layers

    assert (layers(clip), layers(parity_clip("vit24-p14"))) == (5, 12)
    with pytest.raises(SFPError, match=r"spatial_layers of CorrCLIP is 11; .* 1 to 10"):
        build_method("CorrCLIP", clip, proxy="colour", masks=lambda _: 0, spatial_layers=11)
