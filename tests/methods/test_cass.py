"""CASS against the authors' code, alone and beside another image, and slow readings."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import second_backbone as cases
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT, parity_clip
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

import sfp
from sfp.backbones.timm_vit import TimmViT
from sfp.clip.clip import l2_normalise
from sfp.clip.text_bank import TextBank
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods._adapted_text import cluster_queries
from sfp.methods._head_graphs import (
    assign,
    blend,
    distances,
    graphs,
    low_rank,
    match_range,
    meet,
    spectra,
)
from sfp.methods.naclip import gaussian
from sfp.pipeline import Pipeline, Protocol, Task
from sfp.stages import Picture, Text

CASES = cases.settings("cass")
SCALE = 64**-0.5


def keys_of(own: dict) -> torch.Tensor:
    """The made-up keys of a case's second model, heads side by side: (C, h', w')."""
    return made_up_keys(own["keys"], own["heads"], 64, own["key_grid"])


def made_up_keys(name: str, heads: int, width: int, grid: tuple[int, int]) -> torch.Tensor:
    found = []
    for head in range(heads):
        own = f"{name}.{head}"
        mix = cases.normal(f"{own}.mix", width, 9, std=1 / 3)
        parts = cases.features(own, 9, *grid).double().flatten(1).numpy()
        rest = cases.features(f"{own}.rest", width, *grid).double().flatten(1).numpy()
        found.append((mix @ parts + 0.02 * rest).reshape(width, *grid))
    return torch.from_numpy(np.concatenate(found).astype(np.float16).astype(np.float32))


def text_of_cases() -> Text:
    rows = cases.text().vectors.double()
    rows[4] += 2.0 * rows[0]
    rows[5] += 1.2 * rows[1]
    return Text((rows / rows.norm(dim=1, keepdim=True)).float())


def build(case: str, windows: torch.Tensor, **options):
    """The method of a case; windows after the first have its keys turned around."""
    own, keys = CASES[case], keys_of(CASES[case])
    options = (
        dict(
            strategy=own["strategy"],
            rescale=own["dataset"] not in ("voc20", "city_scapes"),
            image_weight=own["global_semantics_weight"],
            patch_weight=own["mean_vector_weight"],
            cluster_distance=own["h_threshold"],
        )
        | options
    )
    method = build_method("CASS", cases.clip_of(case), dino="colour", **options)
    maps = torch.stack([keys, *(keys.flip(0, 2) for _ in windows[1:])])
    method.backbones["dino"].encode = cases.MadeUp(method.square(windows), maps)
    return method


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code_alone_and_beside_another_image(case):
    own, golden, text = CASES[case], cases.golden("cass", case), text_of_cases()
    image = cases.picture(own["image"], *own["size"])
    windows = torch.stack([image, image.flip(-1) + 0.25])
    whole = image
    if own["whole_size"] is not None:
        whole = cases.picture(own["whole_image"], *own["whole_size"])
    for count in (1, 2):
        method = build(case, windows[:count])
        encoded = {k: v[:1] for k, v in method.run(windows[:count]).items()}
        box = torch.tensor([[0, 0, *own["size"]]])
        view = sfp.stages.View(Picture(whole), box, encoded, method.look(Picture(whole)))
        likeness, adapted = method.adapted(view, text)
        cosines = view["features"][0] @ text.vectors.T
        cases.close(cosines.permute(2, 0, 1), golden["cosine"], 1e-5, "cosine")
        features = method(windows[:count])[0].flatten(0, 1)
        cases.close(features[golden["tok"]], golden["feat"], 5e-5, "feat")
        cases.close(likeness[0], golden["global"], 1e-5, "global")
        cases.close(adapted[0], golden["text"], 1e-5, "text")
        scores = method.score(view, text).permute(0, 3, 1, 2)
        pixels = F.interpolate(scores, size=tuple(own["size"]), mode="bilinear")
        cases.close(pixels[0, :, ::4, ::4], golden["logits"], 1e-5, "logits")
        if "cost" in golden:
            keys = clip_keys(method, windows[:count])
            second = method.second_keys(windows[:count], keys)
            omega = distances(low_rank(second, SCALE, True)[1], spectra(keys, SCALE))
            cases.close(1 - omega[0], golden["cost"], 1e-5, "cost")
            np.testing.assert_array_equal(assign(omega)[0], golden["assignment"])
    groups = cluster_queries(text.vectors, own["h_threshold"], "ward")
    same = groups[:, None] == groups[None]
    np.testing.assert_array_equal(same, golden["clusters"][:, None] == golden["clusters"][None])


def clip_keys(method, windows: torch.Tensor) -> torch.Tensor:
    stream = method.stream(windows)[:, method.patch_rows(windows)]
    return method.last_block.qkv(method.last_block.normed(stream), "k")[0].float()


def test_the_pipeline_gives_the_same(clip):
    """Through views and scores of two images at once; the class vector is each image's own."""
    case = "vit12/rect"
    own, golden, text = CASES[case], cases.golden("cass", case), text_of_cases()
    image = cases.picture(own["image"], *own["size"])
    windows = torch.stack([image, image.flip(-1)])
    method = build(case, windows)
    walk = Pipeline(method, TextBank(clip, cache_dir=False), Protocol(window=0))
    views = walk.views([windows[1], windows[0]])
    scores = walk.score(views[1], text).canvas()
    cases.close(scores[:, ::4, ::4], golden["logits"], 1e-5)
    size = tuple(own["size"])
    both = walk.segment([windows[1], windows[0]], [Task(text, Protocol(window=0))], [size] * 2)[0]
    alone = walk.segment([windows[0]], [Task(text, Protocol(window=0))], [size])[0]
    assert torch.equal(both[1][0], alone[0][0])


def test_every_golden_has_its_case():
    names = {key.rpartition("/")[0] for key in cases.parity.golden("cass")}
    assert names == set(CASES)


# ------------------------------------------------------------------ slow readings
def slow_context(
    keys: np.ndarray, maps: torch.Tensor, grid: tuple[int, int], pairing: str, rescale: bool
) -> np.ndarray:
    """C of one window, head by head, by eigenvalues and singular vectors of whole graphs."""
    heads, count, width = keys.shape
    second = F.interpolate(maps[None], size=grid, mode="bilinear")[0].reshape(heads, -1, count)
    second = second.numpy().astype(np.float64).transpose(0, 2, 1)
    second = (second - second.min()) / (second.max() - second.min())
    second = second * (keys.max() - keys.min()) + keys.min()
    own = [k @ k.T / width**0.5 for k in keys]
    other = [k @ k.T / width**0.5 for k in second]

    def spectrum(graph):
        values = np.sort(np.linalg.eigvalsh(graph))[::-1][:20]
        values = values / np.linalg.norm(values)
        return values / np.abs(values).sum()

    omega = np.array([[np.abs(spectrum(d) - spectrum(g)).sum() for g in own] for d in other])
    best = max(
        itertools.permutations(range(heads)),
        key=lambda order: sum(omega[i, order[i]] for i in range(heads)),
    )
    found = []
    for head in range(heads):
        if pairing == "official":
            partner, weight = best[head], omega[head, best[head]]
        else:
            partner = best.index(head)
            weight = omega[partner, head]
        u, sigma, v = np.linalg.svd(other[partner])
        u, sigma, v = u[:, :10], sigma[:10], v[:10]
        if rescale:
            low, high = sigma.min(), sigma.max()
            sigma = (sigma - low) / (high - low) * (1.5 * high - 0.5 * low) + 0.5 * low
        b = (u * sigma) @ v
        np.fill_diagonal(b, 0.0)
        b = (b - b.min()) / (b.max() - b.min()) * (own[head].max() - own[head].min())
        b = b + own[head].min()
        found.append((10 * weight * b + own[head]) / (10 * weight + 1))
    return np.stack(found)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("pairing", ["official", "consistent"])
@torch.inference_mode()
def test_windows_at_once_equal_a_slow_reading_of_each(pairing, rescale):
    clip, grid = parity_clip("vit12-w256", cases.INDEX["seed"]), (6, 7)
    windows = torch.randn(3, 3, 96, 112, generator=torch.Generator().manual_seed(2))
    maps = made_up_keys("slow.28", 4, 24, (12, 12)).expand(3, -1, -1, -1)
    method = build_method("CASS", clip, dino=lambda windows: maps, pairing=pairing, rescale=rescale)
    keys = clip_keys(method, windows)
    found = method.context(keys, windows)
    for window in range(3):
        own = keys[window].double().numpy()
        expected = slow_context(own, maps[window], grid, pairing, rescale)
        np.testing.assert_allclose(found[window], expected, atol=2e-5, rtol=1e-5)
    omega = torch.rand(5, 4, 4)
    assert not all(torch.equal(a, b) for a, b in zip(
        meet(omega, assign(omega), "official"), meet(omega, assign(omega), "consistent"),
        strict=True,
    ))  # fmt: skip
    # the whole last block of one window
    y = method.tokens(windows)
    v = method.last_block.values(method.last_block.normed(method.stream(windows)[:, 1:]))
    maps_of = (found[1] + gaussian(grid, 5.0)[1:, 1:]).softmax(-1)
    torch.testing.assert_close(y[1], method.last_block.project((maps_of @ v[1])[None])[0])


@torch.inference_mode()
def test_sequential_and_vanilla_equal_slow_readings(clip):
    window = cases.picture("cass.plain", 96, 112)[None]
    maps = cases.features("cass.seq", 2 * 20, 12, 12)[None]
    method = build_method("CASS", clip, dino=lambda windows: maps, strategy="sequential")
    block, rows = method.last_block, method.patch_rows(window)
    q, k, v = block.qkv(block.normed(method.stream(window)[:, rows]))
    found = method.context(k, window)
    second, own = method.second_keys(window, k).double(), graphs(k, SCALE)
    for head in range(2):
        u, sigma, vt = torch.linalg.svd(second[0, head] @ second[0, head].T / 8)
        b = ((u[:, :10] * sigma[:10]) @ vt[:10]).fill_diagonal_(0)
        own_range = own[0, head].max() - own[0, head].min()
        b = (b - b.min()) / (b.max() - b.min()) * own_range + own[0, head].min()
        torch.testing.assert_close(
            found[0, head].double(), (b + own[0, head]) / 2, atol=1e-5, rtol=1e-5
        )
    plain = build_method("CASS", clip, strategy="vanilla")
    assert plain.backbones == {}  # and no DINO is looked for
    weights = (q @ k.mT / 8).softmax(-1)
    torch.testing.assert_close(plain.tokens(window), block.project(weights @ v))


# ------------------------------------------------------------------ graphs
def test_the_assignment_has_the_largest_total_distance():
    omega = torch.rand(20, 5, 5, generator=torch.Generator().manual_seed(4))
    for table, pi in zip(omega, assign(omega), strict=True):
        totals = [
            sum(table[i, j] for i, j in enumerate(order))
            for order in itertools.permutations(range(5))
        ]
        assert sum(table[i, j] for i, j in enumerate(pi.tolist())) == pytest.approx(max(totals))
    tied = torch.rand(3, 6, 1).double() + torch.rand(3, 1, 6).double()
    assert torch.equal(assign(tied + 1e-13 * torch.randn(3, 6, 6)), torch.arange(6).expand(3, 6))
    pi = assign(omega)
    partner, weights = meet(omega, pi, "consistent")
    for table, order, row, own in zip(omega, pi, partner, weights, strict=True):
        for head in range(5):  # the head of CLIP is the column
            assert order[row[head]] == head and own[head] == table[row[head], head]


@pytest.mark.parametrize(("patches", "width"), [(30, 16), (30, 6), (7, 16), (1, 16), (12, 2)])
@pytest.mark.parametrize("rescale", [True, False])
def test_low_rank_equals_the_cut_singular_value_decomposition(patches, width, rescale):
    keys = torch.randn(2, 3, patches, width, generator=torch.Generator().manual_seed(1))
    factors, shares = low_rank(keys, 0.5, rescale)
    whole = keys.double() @ keys.double().mT / 2
    u, sigma, vt = torch.linalg.svd(whole)
    rank = min(10, patches)
    sigma = torch.where(sigma > 1e-9, sigma, 0)[..., :rank]
    if rescale:
        low, high = sigma.amin(-1, keepdim=True), sigma.amax(-1, keepdim=True)
        span = high - low
        part = torch.where(span > 0, (sigma - low) / span.where(span > 0, 1), 0)
        sigma = part * (1.5 * high - 0.5 * low) + 0.5 * low
    expected = (u[..., :rank] * sigma[..., None, :]) @ vt[..., :rank, :]
    torch.testing.assert_close((factors @ factors.mT).double(), expected, atol=1e-4, rtol=1e-4)
    values = torch.linalg.eigvalsh(whole).flip(-1)[..., :20].clamp(min=0)
    values = F.pad(values, (0, 20 - values.shape[-1]))
    torch.testing.assert_close(shares, values / values.sum(-1, keepdim=True))
    torch.testing.assert_close(spectra(keys, 0.5), shares)


def test_b_has_the_range_of_g_and_no_diagonal_of_its_own():
    generator = torch.Generator().manual_seed(6)
    factors, keys = (torch.randn(2, 3, 25, 10, generator=generator) for _ in range(2))
    graph = graphs(keys, 0.3)
    found = blend(factors, graph, torch.full((2, 3), 1e9))  # B alone
    for one, own, low in zip(found.flatten(0, 1), graph.flatten(0, 1), factors.flatten(0, 1),
                             strict=True):  # fmt: skip
        assert one.min() == pytest.approx(float(own.min()), abs=1e-3)
        assert one.max() == pytest.approx(float(own.max()), abs=1e-3)
        b = (low @ low.T).fill_diagonal_(0)
        at = (0 - b.min()) / (b.max() - b.min()) * (own.max() - own.min()) + own.min()
        torch.testing.assert_close(one.diagonal(), at.expand(25), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(blend(factors, graph, torch.zeros(2, 3)), graph)


def test_nothing_divides_by_an_empty_range():
    """Constant keys, keys of equal singular values, a single patch: finite numbers."""
    constant, equal = torch.ones(1, 2, 9, 4), torch.eye(9, 9).expand(1, 2, 9, 9)
    for keys in (constant, 0 * constant, equal, constant[:, :, :1]):
        for rescale in (True, False):
            factors, shares = low_rank(keys, 0.5, rescale)
            omega = distances(shares, spectra(keys, 0.5))
            found = blend(factors, graphs(keys, 0.5), meet(omega, assign(omega), "official")[1])
            assert torch.isfinite(factors).all() and torch.isfinite(found).all()
    target = torch.rand(1, 2, 3, 4)
    assert torch.equal(match_range(constant, target, (1, 2, 3)), constant * target.min())


# ------------------------------------------------------------------ text
def test_wards_groups_equal_a_slow_reading():
    """Lance and Williams' update for Ward's criterion, on cosine distances."""
    vectors = l2_normalise(torch.randn(14, 6, generator=torch.Generator().manual_seed(3)))
    table = (1 - vectors.double() @ vectors.double().T).numpy()
    groups, limit = {i: {i} for i in range(14)}, 0.9
    near = {(i, j): table[i, j] for i in range(14) for j in range(i)}

    def of(a, b):
        return near[max(a, b), min(a, b)]

    while len(groups) > 1:
        a, b = min(((i, j) for i in groups for j in groups if j < i), key=lambda pair: near[pair])
        if near[a, b] > limit:
            break
        sizes = {k: len(v) for k, v in groups.items()}
        new = max(near)[0] + 1
        for k in groups:
            if k not in (a, b):
                total = sizes[a] + sizes[b] + sizes[k]
                squared = (sizes[a] + sizes[k]) * of(a, k) ** 2 + (sizes[b] + sizes[k]) * of(
                    b, k
                ) ** 2
                near[new, k] = ((squared - sizes[k] * near[a, b] ** 2) / total) ** 0.5
        groups[new] = groups.pop(a) | groups.pop(b)
    labels = cluster_queries(vectors, limit, "ward").tolist()
    found = [{i for i in range(14) if labels[i] == k} for k in set(labels)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, groups.values())) and len(found) > 2
    tree = linkage(squareform(table, checks=False), "ward")
    assert len(set(fcluster(tree, limit, "distance"))) == len(found)


@torch.inference_mode()
def test_one_query_of_each_group_moves_in_each_window(clip):
    text = Text(l2_normalise(torch.randn(12, 64, generator=torch.Generator().manual_seed(5))))
    windows = torch.stack([cases.picture(f"cass.text.{i}", 96, 96) for i in range(3)])
    method = build_method(
        "CASS", clip, dino="colour", cluster_distance=0.95, patch_weight=0.2, class_vector="window"
    )
    groups = cluster_queries(text.vectors, 0.95, "ward")
    view = Pipeline(method, TextBank(clip, cache_dir=False), Protocol(96, 96)).views(
        [torch.cat(list(windows), 2)]
    )[0]
    likeness, adapted = method.adapted(view, text)
    assert 1 < len(groups.unique()) < len(groups)
    other = cluster_queries(text.vectors, 0.95, "complete")
    assert not torch.equal(groups[:, None] == groups, other[:, None] == other)
    for window in range(3):
        moved = (adapted[window] - text.vectors).abs().amax(-1) > 1e-6
        for group in groups.unique():
            (place,) = (moved & (groups == group)).nonzero()[:, 0].tolist()
            assert place == max(
                (groups == group).nonzero()[:, 0].tolist(), key=lambda q: likeness[window, q]
            )
        torch.testing.assert_close(adapted[window].norm(dim=-1), torch.ones(len(groups)))


def test_the_class_vector_of_image_and_window(toyland_clip):
    """The ordinary class token of the whole image; of each window; nothing where no weight."""
    image = toyland_clip.normalise(
        torch.from_numpy(toyland.make_scene("tune", 0).image.copy()).permute(2, 0, 1)
    )[:, :160, :240]
    method = build_method("CASS", toyland_clip, dino="colour")
    expected = l2_normalise(toyland_clip.encode_image(image[None]))
    with torch.inference_mode():
        torch.testing.assert_close(method.look(Picture(image)), expected)
        assert set(method.run(image[None])) == {"features"}
        own = build_method("CASS", toyland_clip, dino="colour", class_vector="window")
        assert own.look(Picture(image)) is None
        torch.testing.assert_close(own.run(image[None])["cls"], expected)
        none = build_method(
            "CASS", toyland_clip, dino="colour", class_vector="window", image_weight=0.0,
            patch_weight=0.0,
        )  # fmt: skip
        assert set(none.run(image[None])) == {"features"}
    text = Text(l2_normalise(torch.randn(5, toyland_clip.embed_dim)))
    torch.testing.assert_close(
        method.scores(image[None], text), own.scores(image[None], text), atol=1e-5, rtol=1e-5
    )


# ------------------------------------------------------------------ DINO and its picture
def test_dino_gets_a_square_of_the_true_picture(clip):
    seen = []

    def dino(windows):
        seen.append(windows)
        return F.pixel_unshuffle(windows, 8)

    method = build_method("CASS", clip, dino=dino)
    square, wide = cases.picture("cass.a", 96, 96)[None], cases.picture("cass.b", 96, 160)[None]
    method(square)
    assert torch.equal(seen[0], square)
    method(wide)
    assert seen[1].shape == (1, 3, 96, 96)
    pixels = (wide * 40 + 128).clamp(0, 255).round()
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    expected = torch.from_numpy(np.array(image.resize((96, 96), Image.Resampling.BICUBIC)))
    found = method.square(pixels)[0].permute(1, 2, 0)
    assert (found.clamp(0, 255) - expected).abs().max() <= 1.0  # Pillow's bytes
    fixed = build_method("CASS", clip, dino=dino, dino_side=64)
    assert fixed.square(square).shape[-2:] == (64, 64)


def test_the_official_picture_equals_a_slow_reading(clip):
    """Each value to a byte that wraps around, squeezed by Pillow, back."""
    method = build_method("CASS", clip, dino="colour", dino_picture="official")
    window = cases.picture("cass.official", 40, 56)[None]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    bytes_of, wrapped = np.zeros((40, 56, 3), np.uint8), 0
    for c in range(3):
        for y in range(40):
            for x in range(56):
                value = int(np.trunc((np.float32(window[0, c, y, x]) * np.float32(std[c])
                                      + np.float32(mean[c])) * np.float32(255)))  # fmt: skip
                wrapped += not 0 <= value <= 255
                bytes_of[y, x, c] = value % 256
    assert wrapped > 20
    small = np.array(Image.fromarray(bytes_of).resize((40, 40), Image.Resampling.BICUBIC))
    expected = clip.normalise(torch.from_numpy(small).permute(2, 0, 1))
    torch.testing.assert_close(method.square(window)[0], expected)
    true = build_method("CASS", clip, dino="colour")
    assert not torch.allclose(true.square(window), method.square(window), atol=0.1)


def tiny_dino(clip, heads: int, **options) -> TimmViT:
    """timm's own DINO class with made-up weights."""
    torch.manual_seed(3)
    model = timm.create_model(
        "vit_base_patch8_224", num_classes=0, img_size=48, embed_dim=16 * heads, depth=2,
        num_heads=heads, dynamic_img_size=True,
    )  # fmt: skip
    found = TimmViT(model.eval(), clip, reads="keys", **options)
    found.name = "tiny"
    return found


@torch.inference_mode()
def test_a_real_vit_of_made_up_weights(clip):
    """Windows whose sides are no multiples of its patch; each head's keys are its own."""
    dino = tiny_dino(clip, 2, positions="scale")
    method = build_method("CASS", clip, dino=dino)
    window = cases.picture("cass.real", 77, 108)[None]
    assert method(window).shape == (1, 4, 6, 64)
    maps = dino(method.square(window))
    assert maps.shape == (1, 32, 9, 9)
    torch.testing.assert_close(maps, dino(method.square(window)[..., :72, :72]))
    keys = clip_keys(method, window)
    second = method.second_keys(window, keys)
    assert second.shape == (1, 2, 24, 16)
    assert second.min() == keys.min()
    assert second.max() == pytest.approx(float(keys.max()), abs=1e-5)
    again = F.interpolate(maps, size=(4, 6), mode="bilinear")[0, 16:].flatten(1).T
    matched = match_range(
        F.interpolate(maps, size=(4, 6), mode="bilinear"), keys, (1, 2, 3)
    )[0, 16:].flatten(1).T  # fmt: skip
    torch.testing.assert_close(second[0, 1], matched)
    assert not torch.allclose(again, matched)


# ------------------------------------------------------------------ bad input
def test_heads_that_do_not_fit(clip):
    with pytest.raises(SFPError, match=r"tiny \(dino\) has 3 and this CLIP 2; give a model with 2"):
        build_method("CASS", clip, dino=tiny_dino(clip, 3))
    method = build_method("CASS", clip, dino=lambda windows: windows)
    with pytest.raises(SFPError, match=r"the 3 channels of .* are not those of 2 heads"):
        method(cases.picture("cass.bad", 64, 64)[None])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(dino="resnet18"), "give dino a plain ViT"),
        (dict(dino="vit_base_patch8_224.dino"), "dino_weights"),  # not on this machine
        (dict(dino="vit_base_patch8_224.dino", dino_weights="no.pth"), r"no.pth \(dino_weights\)"),
        (dict(dino="colour", strategy="best"), "strategy"),
        (dict(dino="colour", sigma=0.0), "sigma"),
    ],
)
def test_mistakes(options, words, clip):
    with pytest.raises(SFPError, match=words):
        build_method("CASS", clip, **options)


# ------------------------------------------------------------------ the whole way
def test_through_the_command_line(tmp_path, tool, monkeypatch):
    monkeypatch.setenv("SFP_DATA", str(tmp_path / "data"))
    toyland.write_split(tmp_path / "data/toyland", "val", 2)
    code, _, error = tool(
        "test", ROOT / "configs/cfg_toyland.py", "--work-dir", tmp_path / "run", "--cfg-options",
        "model.method=CASS", "model.prompts=photo", "test_dataloader.dataset.scenes=2",
        "test_dataloader.num_workers=0",
    )  # fmt: skip
    assert (code, error) == (0, "")
    result = json.loads((tmp_path / "run/results.json").read_text())
    assert result["method"] == "CASS" and 20 < result["mIoU"] < 100
