"""The trunk against open_clip's own forward, hooks, and grids of any shape."""

from __future__ import annotations

import parity
import pytest
import torch

from sfp.clip.trunk import Attention, Hook
from sfp.errors import SFPError


def test_class_token_equals_open_clip(clip):
    window = torch.cat([parity.case_image("vit12/win0"), parity.case_image("vit12/win1")])
    torch.testing.assert_close(
        clip.encode_image(window), clip.model.encode_image(window), atol=1e-5, rtol=1e-5
    )


def test_explicit_attention_equals_fused(clip):
    window = parity.case_image("vit12/win2")
    fused = clip.trunk.run(window)
    explicit = clip.trunk.run(window, [Hook(lambda state: None, range(1, 13), Attention.MAP)])
    torch.testing.assert_close(explicit, fused, atol=1e-4, rtol=1e-4)


def test_a_hook_that_returns_tokens_replaces_them_and_one_that_returns_nothing_observes(clip):
    window = parity.case_image("vit12/win0")
    plain, seen = clip.trunk.run(window), []
    watched = clip.trunk.run(window, [Hook(lambda state: seen.append(state.layer), range(1, 13))])
    assert torch.equal(plain, watched) and seen == list(range(1, 13))
    replaced = clip.trunk.run(window, [Hook(lambda state: state.tokens * 0, [12])])
    assert torch.equal(replaced, torch.zeros_like(plain))
    early = clip.trunk.run(window, [Hook(lambda state: state.tokens.flip(1), [3])])
    assert not torch.allclose(early, plain)


def test_hooks_of_one_layer_run_in_order_on_each_others_tokens(clip):
    seen = []
    hooks = [
        Hook(lambda state: state.tokens + 1, [2]),
        Hook(lambda state: seen.append(state.tokens.clone()), [2]),
    ]
    before = []
    clip.trunk.run(
        parity.case_image("vit12/win0"),
        [Hook(lambda state: before.append(state.tokens.clone()), [2])],
        last=2,
    )
    clip.trunk.run(parity.case_image("vit12/win0"), hooks, last=2)
    torch.testing.assert_close(seen[0], before[0] + 1)


def test_state_shapes_and_attention_rows(clip):
    states = []
    clip.trunk.run(
        parity.image("rect.0", 224, 320)[None].repeat(2, 1, 1, 1),
        [Hook(states.append, [4], Attention.MAP)],
        last=4,
    )
    (state,) = states
    n, heads = 14 * 20, clip.trunk.heads
    assert state.grid == (14, 20) and state.layer == 4
    assert (
        state.q.shape
        == state.k.shape
        == state.v.shape
        == (2, heads, n + 1, clip.trunk.width // heads)
    )
    assert state.attention.shape == (2, n + 1, n + 1)
    torch.testing.assert_close(state.attention.sum(-1), torch.ones(2, n + 1))
    torch.testing.assert_close(state.cls_row.mean(1), state.attention[:, 0, 1:])
    torch.testing.assert_close(state.cls_column.mean(1), state.attention[:, 1:, 0])
    torch.testing.assert_close(
        state.diagonal.mean(1), state.attention.diagonal(dim1=1, dim2=2)[:, 1:]
    )


def test_the_attention_point_comes_before_the_mlp(clip):
    window, seen = parity.case_image("vit12/win0"), {}
    hooks = [
        Hook(lambda s, p=p: seen.update({p: s.tokens.clone()}), [5], point=p)
        for p in ("attention", "block")
    ]
    clip.trunk.run(window, hooks, last=5)
    block = clip.trunk.blocks[4]
    torch.testing.assert_close(seen["attention"] + block.mlp(seen["attention"]), seen["block"])


@pytest.mark.parametrize("shape", [(2, 3, 8, 224), (2, 1, 224, 224), (3, 224, 224)])
def test_wrong_windows_are_one_sentence(shape, clip):
    with pytest.raises(SFPError, match=r"smaller than one patch|float tensor"):
        clip.trunk.run(torch.zeros(shape))
    with pytest.raises(SFPError, match="float tensor"):
        clip.trunk.run(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
