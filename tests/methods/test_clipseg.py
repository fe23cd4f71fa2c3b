"""CLIPSeg's equations on small hand-made cases, against loops and plain formulas (no code was
published).
"""

from __future__ import annotations

import warnings

import parity
import pytest
import torch
from conftest import parity_clip

from sfp.clip.kernels import layer_norm
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods._connected import components


def build(**options):
    return build_method("CLIPSeg", parity_clip("vit12"), **{"attention_layer": 6, **options})


def slow_clipseg(clip, window, layer, epsilon, tau, deep):
    """The default reading step by step, one window, loops over patches, from
    open_clip's own modules.
    """
    blocks = clip.model.visual.transformer.resblocks
    stream, tokens = [], clip.trunk.embed(window)
    stream.append(tokens)
    for block in blocks:
        tokens = block(tokens)
        stream.append(tokens)  # X^l
    width = clip.trunk.width

    def part(block, rows, which):
        cut = slice(which * width, (which + 1) * width)
        return (
            layer_norm(rows, block.ln_1) @ block.attn.in_proj_weight[cut].T
            + block.attn.in_proj_bias[cut]
        )

    keys = part(blocks[layer - 1], stream[layer - 1][0, 1:], 1)
    keys = keys / keys.norm(dim=1, keepdim=True)
    similarity = keys @ keys.T
    count = len(keys)
    group = list(range(count))
    for i in range(count):  # merge groups
        for j in range(count):
            if similarity[i, j] >= epsilon and group[i] != group[j]:
                old, new = group[j], group[i]
                group = [new if g == old else g for g in group]
    related = torch.tensor([[float(a == b) for b in group] for a in group])
    attention = (tau * (similarity + epsilon * related)).softmax(1)
    values = [part(blocks[-1], stream[len(blocks) - 1][0, 1:], 2)]
    for i in deep:
        x = stream[i - 1][0, 1:]
        values.append(part(blocks[-1], x + blocks[i - 1].mlp(layer_norm(x, blocks[i - 1].ln_2)), 2))
    mixed = blocks[-1].attn.out_proj(attention @ torch.stack(values).mean(0))
    return layer_norm(mixed, clip.model.visual.ln_post) @ clip.model.visual.proj, len(set(group))


@pytest.mark.parametrize(("epsilon", "tau"), [(0.75, 6.0), (0.9, 3.0)])
@torch.inference_mode()
def test_equals_a_slow_reading_of_the_paper(epsilon, tau):
    clip, window = parity_clip("vit12"), parity.case_image("vit12/win1")
    expected, _ = slow_clipseg(clip, window, 6, epsilon, tau, (10, 11))
    found = build(epsilon=epsilon, tau=tau)(window)[0].flatten(0, 1)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


class TestReachability:
    # 0-1-2 a chain, 3-4 a pair, 5 alone
    similarity = torch.eye(6)
    for i, j, s in ((0, 1, 0.8), (1, 2, 0.9), (0, 2, 0.1), (3, 4, 0.76), (4, 5, 0.74)):
        similarity[i, j] = similarity[j, i] = s

    def related(self, **options) -> list[set[int]]:
        weights = build(**options).reachability(self.similarity)
        return [set(row.nonzero()[:, 0].tolist()) for row in weights]

    def test_connected_components(self):
        assert self.related() == [{0, 1, 2}] * 3 + [{3, 4}] * 2 + [{5}]

    def test_weights_are_epsilon_on_the_diagonal_too(self):
        weights = build().reachability(self.similarity)
        assert weights[0, 2] == weights[5, 5] == 0.75 and weights[0, 3] == 0
        assert build(relation_weight="similarity").reachability(self.similarity)[
            0, 2
        ] == pytest.approx(0.1)

    def test_two_hop_needs_a_common_neighbour(self):
        chain = torch.eye(4)
        for i in range(3):
            chain[i, i + 1] = chain[i + 1, i] = 0.8
        method = build(relation="two_hop")
        assert [set(row.nonzero()[:, 0].tolist()) for row in method.reachability(chain)] == [
            {0, 1, 2},
            {0, 1, 2, 3},
            {0, 1, 2, 3},
            {1, 2, 3},
        ]
        assert (build().reachability(chain) > 0).all()

    def test_core_points_as_dbscan(self):
        """min_samples=3.

        Only patch 1 of the chain is a core point, 0 and 2 belong to it; the pair is noise.
        """
        assert self.related(relation_min_samples=3) == [{0, 1, 2}] * 3 + [{3}, {4}, {5}]

    def test_distance_instead_of_similarity(self):
        assert self.related(epsilon_kind="distance", epsilon=0.25) == self.related()
        assert self.related(epsilon_kind="distance", epsilon=0.26)[5] == {3, 4, 5}

    def test_epsilon_above_all_similarities_leaves_the_diagonal(self):
        weights = build(epsilon=0.95).reachability(self.similarity)
        assert torch.equal(weights, 0.95 * torch.eye(6))

    def test_components_equal_scipys(self):
        from scipy.sparse.csgraph import connected_components

        near = torch.rand(4, 60, 60) > 0.985
        near = near | near.transpose(1, 2) | torch.eye(60, dtype=torch.bool)
        for graph, labels in zip(near, components(near), strict=True):
            _, expected = connected_components(graph.numpy())
            same = torch.from_numpy(expected)[:, None] == torch.from_numpy(expected)[None]
            assert torch.equal(labels[:, None] == labels[None], same)

    def test_a_long_chain(self):
        near = (
            torch.eye(200, dtype=torch.bool)
            | torch.diag(torch.ones(199), 1).bool()
            | torch.diag(torch.ones(199), -1).bool()
        )
        assert (components(near) == 0).all()


def test_one_component_makes_g_irrelevant():
    window = parity.case_image("vit12/win0")
    everything = build(epsilon=-1.0)(window)  # every pair is related
    method = build()
    method.reachability = lambda similarity: torch.zeros_like(similarity)
    torch.testing.assert_close(everything, method(window), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_dsi_with_start_minus_one_is_v_l():
    method, window = build(deep_layers=-1), parity.case_image("vit12/win0")
    stream = method.stream(window)
    assert method.deep_layers == ()
    assert torch.equal(
        method.integrated_values(stream, {}),
        method.last_block.values(method.last_block.normed(stream)),
    )
    assert (
        build().deep_layers
        == build(deep_layers=-3).deep_layers
        == build(deep_layers=[11, 10]).deep_layers
        == (10, 11)
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(normalise_keys=False), dict(key_heads="separate"), dict(relation_min_samples=4),
        dict(relation_weight="similarity"),
        dict(deep_norm=False), dict(ffn_norm=False), dict(deep_stream="attention_free"),
        dict(cls_token=True),
        dict(deep_layers=-2), dict(tau=12.0), dict(attention_layer=9),
    ],
)  # fmt: skip
def test_each_option_changes_the_features(options):
    window = parity.case_image("vit12/win1")
    assert not torch.allclose(build()(window), build(**options)(window), atol=1e-4)


def test_sum_and_mean_differ_only_by_the_bias():
    """The readout undoes the scale; only b_o feels it."""
    window = parity.case_image("vit12/win1")
    mean, total = build()(window), build(deep_merge="sum")(window)
    assert torch.cosine_similarity(mean, total, dim=-1).min() > 0.99 and not torch.equal(
        mean, total
    )


def test_the_layer_follows_the_backbone():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert build_method("CLIPSeg", parity_clip("vit24-p14")).attention_layer == 9
        assert build_method("CLIPSeg", parity_clip("vit12")).attention_layer == 7


@torch.inference_mode()
def test_the_last_blocks_own_keys_and_its_trained_attention():
    """Table 4's last rows.

    K_L-k_L is Eq. 3 without G on the last block's keys, q-k the attention that it was trained with.
    """
    clip, window = parity_clip("vit12"), parity.case_image("vit12/win1")
    method = build(attention="q-k", deep_layers=-1)
    stream, block = method.stream(window), clip.trunk.blocks[-1]
    q, k, v = (part[0, :, 1:] for part in block.qkv(block.normed(stream)))
    trained = torch.stack(
        [(q[h] @ k[h].T / q.shape[-1] ** 0.5).softmax(1) @ v[h] for h in range(len(q))]
    )
    torch.testing.assert_close(
        method.tokens(window), block.project(trained[None]), atol=1e-5, rtol=1e-4
    )
    keys = torch.cat(list(k), 1)
    keys = keys / keys.norm(dim=1, keepdim=True)
    coherent = (6 * keys @ keys.T).softmax(1) @ v
    for layer in (12, -1):
        found = build(attention_layer=layer, epsilon=0.0, deep_layers=-1)
        assert found.attention_layer == 12
        torch.testing.assert_close(
            found.tokens(window), block.project(coherent[None]), atol=1e-5, rtol=1e-4
        )
    assert torch.equal(build(attention_layer=-7)(window), build()(window))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(deep_layers=3), "start index from -1 to -11"),
        (dict(deep_layers=[12]), "1 to 11"),
        (dict(attention_layer=13), "1 to 12"),
        (dict(attention_layer=-13), "names layer -13"),
        (dict(relation="near"), "two_hop"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(SFPError, match=words):
        build(**options)
