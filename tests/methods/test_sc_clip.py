"""SC-CLIP with parts left out or replaced, against a slow reading with loops over layers and heads
.
"""

from __future__ import annotations

import parity
import pytest
import torch
from conftest import parity_clip

from sfp.backbones import load_backbone
from sfp.clip.kernels import layer_norm
from sfp.clip.trunk import Hook
from sfp.errors import SFPError
from sfp.methods import build_method, list_methods
from sfp.outliers import build_detector, repair

BASELINE = dict(correlation="qk", enhance=False, aggregation="none", fuse_layers=[], purify=False)


def slow_sc_clip(
    clip,
    window,
    *,
    purify=True,
    correlation="k",
    enhance=True,
    aggregation="both",
    fused=range(4, 11),
    fusion="pass",
    colours=False,
):
    """Y of one window (N, C): layers and heads one by one, from open_clip's own modules."""
    modules, heads = clip.model.visual.transformer.resblocks, clip.trunk.heads
    grid = clip.trunk.grid_of(*window.shape[-2:])
    stream = [clip.trunk.embed(window)[0]]
    for module in modules[:-1]:
        stream.append(module(stream[-1][None])[0])  # X^l

    def heads_of(module, rows):
        """For each head Q, K and V."""
        parts = (
            layer_norm(rows, module.ln_1) @ module.attn.in_proj_weight.T + module.attn.in_proj_bias
        ).chunk(3, -1)
        return [
            dict(zip("qkv", own, strict=True))
            for own in zip(*(part.chunk(heads, -1) for part in parts), strict=True)
        ]

    def own_softmax(u):
        return (u @ u.T / u.shape[1] ** 0.5).softmax(1)

    def unit(rows):
        return rows / rows.norm(dim=1, keepdim=True)

    last, pre, post = stream[11][1:], stream[9][1:], stream[4][1:]
    if purify:
        state = type("State", (), dict(patches=last[None]))
        outliers = build_detector("LOF")(state)[0]
        last, pre = (repair(rows[None], outliers, grid)[0] for rows in (last, pre))
    if colours:  # cells of 8x8 pixels to patches of 16x16
        pre = post = (
            load_backbone("colour", clip, "similarity")(window)[0]
            .unflatten(1, (grid[0], 2))
            .unflatten(3, (grid[1], 2))
            .mean((2, 4))
            .flatten(1)
            .T
        )
    g_pre, g_post = unit(pre) @ unit(pre).T, unit(post) @ unit(post).T
    bias = 3 * (g_pre - g_pre.mean())
    similar = bias.where(bias >= 0, torch.tensor(-torch.inf)).softmax(1)

    def aggregate(g, rows):
        g = g.where(g >= 0.4, torch.tensor(0.0))
        return g / (g.sum(1, keepdim=True) + 1e-6) @ rows

    def dec(rows, cls):
        mixed = []
        for head in heads_of(modules[-1], rows):
            maps = [own_softmax(head[letter]) for letter in correlation] + (
                [similar] if enhance else []
            )
            mixed.append(sum(maps) @ head["v"] / len(maps))
        return modules[-1].attn.out_proj(torch.cat(mixed, 1)) + 0.3 * cls

    total = sum(stream[layer] for layer in fused)
    y = dec(aggregate(g_pre, last) if aggregation in ("both", "before") else last, stream[11][:1])
    if fused and fusion == "pass":
        y = y + dec(total[1:], total[:1])
    if aggregation in ("both", "after"):
        y = aggregate(g_post, y)
    if fused and fusion == "sum":
        y = y + total[1:]
    if fused and fusion == "dual_path":
        for layer in fused:
            module = modules[layer - 1]
            mixed = [
                own_softmax(head["v"]) @ head["v"] for head in heads_of(module, stream[layer - 1])
            ]
            y = y + module.attn.out_proj(torch.cat(mixed, 1))[1:]
    return y


@pytest.mark.parametrize(
    ("options", "slow"),
    [
        ({}, {}),
        (
            BASELINE,
            dict(correlation="qk", enhance=False, aggregation="none", fused=(), purify=False),
        ),
        (dict(aggregation="before", fuse_layers=[]), dict(aggregation="before", fused=())),
        (dict(aggregation="after", correlation="v"), dict(aggregation="after", correlation="v")),
        (
            dict(correlation="q", fuse_layers=[[5, 5], [9, 10]]),
            dict(correlation="q", fused=(5, 9, 10)),
        ),
        (dict(fusion="sum", fuse_layers=[[5, 5], [9, 9]]), dict(fusion="sum", fused=(5, 9))),
        (dict(fusion="dual_path", enhance=False), dict(fusion="dual_path", enhance=False)),
        (dict(similarity="colour", correlation=""), dict(colours=True, correlation="")),
    ],
    ids=lambda options: ",".join(options) or "published",
)
@torch.inference_mode()
def test_equals_a_slow_reading(options, slow):
    clip, window = parity_clip("vit12"), parity.case_image("vit12/win1")
    found = build_method("SC-CLIP-ablation", clip, **options).tokens(window)[0]
    torch.testing.assert_close(found, slow_sc_clip(clip, window, **slow), atol=2e-5, rtol=1e-4)


def test_windows_of_another_shape_have_colours_on_their_own_grid():
    features = build_method("SC-CLIP-ablation", parity_clip("vit12"), similarity="colour")(
        parity.image("rect.0", 120, 230)[None]
    )
    assert features.shape == (1, 7, 14, 64) and torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SC-CLIP-ablation", dict(correlation="kx"), "letters of q, k and v"),
        ("SC-CLIP-ablation", dict(correlation="", enhance=False), "one at least without enhance"),
        ("SC-CLIP", dict(fuse_layers=[[5, 5], [9]]), "first <= last"),
        ("SC-CLIP", dict(fuse_layers=[5, 5, 9]), "first <= last"),
        ("SC-CLIP", dict(fuse_layers=[[5, 12]]), "layer 12"),
        ("SC-CLIP-ablation", dict(fusion="dual"), "dual_path"),
        ("SC-CLIP-ablation", dict(aggregation="pre"), "before"),
        ("SC-CLIP-ablation", dict(similarity="dyno"), "timm has no model 'dyno'"),
        ("SC-CLIP", dict(enhance=False), "Unknown option"),
    ],
)
def test_wrong_options(name, options, words):
    with pytest.raises(SFPError, match=words):
        build_method(name, parity_clip("vit12"), **options)


def test_without_switches_the_ablation_is_the_method(clip):
    window = parity.case_image("vit12/win1")
    method, ablation = (build_method(name, clip) for name in ("SC-CLIP", "SC-CLIP-ablation"))
    assert torch.equal(method(window), ablation(window))
    assert "SC-CLIP-ablation" not in list_methods()


def test_a_sum_that_reaches_the_last_but_one_layer_takes_its_unrepaired_tokens(clip):
    """As the authors' code: M sums what the blocks made, the repair acts on the stream alone."""
    window = parity.case_image("vit12/win1")
    method = build_method("SC-CLIP", clip, fuse_layers=(9, 11), pm="L2")
    stream, _, _, fused = method.streams(window)
    outputs = []
    clip.trunk.run(window, [Hook(lambda s: outputs.append(s.tokens), [9, 10, 11])], last=11)
    torch.testing.assert_close(fused, sum(outputs))
    assert not torch.allclose(stream, outputs[-1])


def test_published_values_given_explicitly_change_nothing(clip):
    given = dict(pre_layer=9, post_layer=4, fuse_layers=[4, 10], res_cls=0.3, purify=True, pm="LOF")
    assert build_method("SC-CLIP", clip, **given, k=30).changed_options() == {}
    assert build_method("SC-CLIP", clip, res_cls=0.2, k=20).changed_options() == dict(
        res_cls=0.2, k=20
    )
