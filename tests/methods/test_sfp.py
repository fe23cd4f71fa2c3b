"""SFP's equations on small cases, against loops and plain formulas.

No public code has SOM after every layer and HAI.
"""

from __future__ import annotations

import parity
import pytest
import torch

from sfp.clip.kernels import layer_norm
from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.methods import build_method
from sfp.methods._parts import masked_similarity_attention, mix, sinkhorn

RESIDUALS = ("cls", "full", "attention", "ffn", "none")  # the default first


def slow_sfp(
    clip,
    window,
    *,
    residual="cls",
    cls_key=False,
    iterations=1,
    first_layer=1,
    purify=True,
    hai=True,
    sae_lambda=0.5,
    norm=True,
):
    """The paper's equations step by step, one window, loops over tokens and heads."""
    trunk = clip.trunk
    grid = trunk.grid_of(*window.shape[-2:])
    tokens = trunk.embed(window)[0]
    total = torch.zeros(len(tokens) - 1, len(tokens) - 1)
    heads, width = trunk.heads, trunk.width // trunk.heads
    for layer in range(1, trunk.layers):
        module = clip.model.visual.transformer.resblocks[layer - 1]
        normed = layer_norm(tokens, module.ln_1)
        q, k, v = (normed @ module.attn.in_proj_weight.T + module.attn.in_proj_bias).chunk(3, -1)
        mixed, average = [], 0
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            attention = (q[:, part] @ k[:, part].T / width**0.5).softmax(-1)
            mixed.append(attention @ v[:, part])
            average = average + attention / heads
        tokens = tokens + module.attn.out_proj(torch.cat(mixed, -1))
        tokens = tokens + module.mlp(layer_norm(tokens, module.ln_2))
        a = average[1:, 1:].clone()
        if purify:
            bad = [i for i in range(len(a)) if average[i + 1, i + 1] < average[0, i + 1]]
            old = tokens.clone()
            for i in bad:
                row, column = divmod(i, grid[1])
                near = [
                    r * grid[1] + c
                    for r in range(max(0, row - 1), min(grid[0], row + 2))
                    for c in range(max(0, column - 1), min(grid[1], column + 2))
                    if (r, c) != (row, column) and r * grid[1] + c not in bad
                ]
                if near:
                    tokens[i + 1] = old[[n + 1 for n in near]].mean(0)
            a[:, bad] = 0
        if layer >= first_layer:
            total += a
    last = clip.model.visual.transformer.resblocks[-1]
    normed = layer_norm(tokens, last.ln_1)
    q, k, v = (normed @ last.attn.in_proj_weight.T + last.attn.in_proj_bias).chunk(3, -1)
    cls, f_som = tokens[0], tokens[1:]
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = sae_lambda * (q[:, part] @ q[:, part].T + k[:, part] @ k[:, part].T) / width**0.5
        if cls_key:
            mixed.append((logits.softmax(-1) @ v[:, part])[1:])
        else:
            mixed.append(logits[1:, 1:].softmax(-1) @ v[1:, part])
    e = last.attn.out_proj(torch.cat(mixed, -1))

    def mlp(x):
        return last.mlp(layer_norm(x, last.ln_2) if norm else x)

    features = {
        "cls": lambda: e + 0.3 * cls,
        "full": lambda: f_som + e + mlp(f_som + e),
        "attention": lambda: f_som + e,
        "ffn": lambda: f_som + mlp(e),
        "none": lambda: e,
    }[residual]()
    if hai:
        for _ in range(iterations):
            total = total / total.sum(1, keepdim=True).clamp(min=1e-6)
            total = total / total.sum(0, keepdim=True).clamp(min=1e-6)
        features = total @ features
    return (layer_norm(features, clip.model.visual.ln_post) @ clip.model.visual.proj).unflatten(
        0, grid
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(dict(residual=residual) for residual in RESIDUALS),
        *(dict(residual=residual, cls_key=True) for residual in RESIDUALS),
        dict(iterations=3),
        dict(first_layer=8),
        dict(purify=False),
        dict(hai=False),
        dict(sae_lambda=1.0),
        dict(norm=False, residual="full"),
        dict(norm=False, residual="ffn"),
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_the_slow_reading_of_the_paper(options, clip):
    spelled = dict(
        residual="sae_residual",
        cls_key="sae_cls_key",
        iterations="hai_iterations",
        first_layer="hai_first_layer",
        norm="sae_norm",
    )
    method = build_method(
        "SFP", clip, **{spelled.get(key, key): value for key, value in options.items()}
    )
    window = parity.image("win1.1", 224, 320)[None]
    torch.testing.assert_close(
        method(window)[0], slow_sfp(clip, window, **options), atol=2e-4, rtol=1e-4
    )


def test_the_class_token_reaches_sae_only_by_its_term(clip):
    """Out of the keys and values: without the term, another class token changes nothing."""
    purified = torch.randn(1, 10, clip.trunk.width)
    other = torch.cat([torch.randn(1, 1, clip.trunk.width), purified[:, 1:]], 1)
    for residual, share in (("none", 0.0), ("cls", 0.3)):
        sae = build_method("SFP", clip, sae_residual=residual)._sae
        change = (sae(other, slice(1, 10)) - sae(purified, slice(1, 10)))[:, 1:]
        expected = share * (other - purified)[:, :1].expand_as(change)
        torch.testing.assert_close(change, expected, atol=1e-5, rtol=0)


def test_som_flags_tokens_in_these_windows(clip):
    """The case above is not empty: outliers occur, and purified tokens change the layers after."""
    counts = []
    method = build_method("SFP", clip)
    count = Hook(lambda state: counts.append(int(state.outliers.sum())), range(1, 12))
    clip.trunk.run(parity.case_image("vit12/win1"), method.hooks(count), last=11)
    assert len(counts) == 11 and sum(counts) > 10


def test_hai_sums_attention_without_outlier_columns(clip):
    """Eq. 8-9 on a made-up layer: columns of outliers are zero, the others as they were."""
    method = build_method("SFP", clip)
    attention = torch.rand(2, 5, 5)
    outliers = torch.tensor([[True, False, False, True], [False, False, False, False]])
    tokens = torch.zeros(2, 5, 8)
    state = LayerState(1, (2, 2), tokens, tokens, attention=attention, outliers=outliers)
    expected = attention[:, 1:, 1:].clone()
    expected[0, :, [0, 3]] = 0
    torch.testing.assert_close(method._clean_attention(state), expected)
    assert torch.equal(attention[:, 1:, 1:], state.attention[:, 1:, 1:])


def test_sinkhorn_by_hand():
    """Eq. 10: rows first, then columns."""
    matrix = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])
    rows = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    torch.testing.assert_close(sinkhorn(matrix, 1)[0], rows / rows.sum(0))
    assert torch.equal(sinkhorn(matrix, 0), matrix)
    doubly = sinkhorn(torch.rand(3, 20, 20) + 0.1, 60)
    torch.testing.assert_close(doubly.sum(1), torch.ones(3, 20), atol=1e-4, rtol=0)
    torch.testing.assert_close(doubly.sum(2), torch.ones(3, 20), atol=1e-4, rtol=0)


def test_a_column_that_is_zero_everywhere_stays_zero():
    matrix = torch.rand(1, 4, 4)
    matrix[..., 2] = 0
    assert torch.equal(sinkhorn(matrix, 3)[..., 2], torch.zeros(1, 4))
    assert torch.equal(sinkhorn(torch.zeros(1, 4, 4), 2), torch.zeros(1, 4, 4))


def test_row_scale_of_the_final_matrix_does_not_change_the_direction(clip):
    method = build_method("SFP", clip)
    features = torch.randn(1, 9, clip.trunk.width)
    mixing = torch.rand(1, 9, 9)
    read = clip.trunk.readout(mixing @ features)
    scaled = clip.trunk.readout((mixing * torch.rand(1, 9, 1).add(0.5)) @ features)
    assert torch.cosine_similarity(read, scaled, dim=-1).min() > 1 - 1e-5
    assert method.hai_place == "before"


@pytest.mark.parametrize(
    "options",
    [
        dict(sae=False),
        dict(sae_values="literal"),
        *(dict(sae_residual=residual) for residual in RESIDUALS[1:]),
        dict(sae_cls_weight=0.1),
        dict(sae_cls_key=True),
        dict(hai_cls=True),
        dict(hai_rows="zeroed"),
        dict(hai_place="after"),
        dict(max_outliers=2),
        dict(cls_factor=1.5),
        dict(heads="max"),
        dict(direction="column"),
        dict(repair_divisor="eight"),
        dict(repair_point="attention"),
    ],
    ids=str,
)
def test_each_open_question_is_an_option_that_acts(options, clip):
    window = parity.case_image("vit12/win1")
    default, other = build_method("SFP", clip)(window), build_method("SFP", clip, **options)(window)
    assert torch.isfinite(other).all()
    assert not torch.allclose(default, other, atol=1e-4)


def test_without_parts_it_is_plain_clip(clip):
    window = parity.case_image("vit12/win0")
    bare = build_method("SFP", clip, purify=False, sae=False, hai=False)(window)
    torch.testing.assert_close(bare, build_method("CLIP", clip)(window))


def test_max_outliers_caps_each_layer(clip):
    seen = []
    method = build_method("SFP", clip, max_outliers=3)
    watch = Hook(lambda state: seen.append(state.outliers.sum(1).max()), range(1, 12))
    clip.trunk.run(parity.case_image("vit12/win1"), method.hooks(watch), last=11)
    assert max(seen) == 3


def test_attention_maps_are_made_only_where_they_are_asked_for(clip):
    seen = {}
    look = Hook(lambda state: seen.update({state.layer: state.attention is not None}), range(1, 12))
    ask = Hook(lambda state: None, [3, 5], Attention.MAP)
    clip.trunk.run(parity.case_image("vit12/win0"), [look, ask], last=11)
    assert [layer for layer, made in seen.items() if made] == [3, 5]


def test_identical_tokens_keep_their_similarity_attention():
    """No row is empty where all similarities equal their mean; attention is uniform there."""
    torch.testing.assert_close(
        masked_similarity_attention(torch.ones(1, 6, 6)), torch.full((1, 6, 6), 1 / 6)
    )
    assert torch.isfinite(masked_similarity_attention(torch.zeros(1, 6, 6))).all()


def test_one_map_mixes_the_values_of_all_heads():
    weights, v = torch.rand(2, 5, 5), torch.randn(2, 3, 5, 64)
    torch.testing.assert_close(mix(weights, v), weights[:, None] @ v)
