"""Parts that several methods share: self-self attention, similarities, Sinkhorn, second paths.

Similarities and their sums are float32, every statistic is per image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfp.clip.block import Block
from sfp.clip.clip import l2_normalise
from sfp.clip.kernels import attend
from sfp.clip.trunk import Hook, LayerState

if TYPE_CHECKING:
    from sfp.methods import Method


def self_attend(
    u: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale U U^T + bias) V per head, (B, heads, T, d_h).

    Scale is U's width^-1/2 by default.
    """
    return attend(u, u, v, bias=bias, scale=scale)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d_h)) of (B, heads, T, d_h) each: (B, heads, T, T) float32."""
    return (q.float() * q.shape[-1] ** -0.5 @ k.float().transpose(-2, -1)).softmax(-1)


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """A V with one map (B, N, N) for all heads of V (B, heads, N, d_h)."""
    joined = weights.to(v.dtype) @ v.transpose(1, 2).flatten(2)
    return joined.unflatten(2, (v.shape[1], -1)).transpose(1, 2)


def correlate(block: Block, tokens: Tensor, terms: str, similarity: Tensor | None = None) -> Tensor:
    """W_o concat(A V) + b_o of tokens (B, N, C), A the mean of softmax(U U^T / sqrt(d_h)).

    Args:
        block: whose projections are taken.
        terms: the letters of each U among q, k and v, such as "k" or "qk".
        similarity: a further map for all heads, (B, N, N).
    """
    which = "qkv"[min("qkv".index(letter) for letter in terms + "v") :]
    parts = dict(zip(which, block.qkv(block.normed(tokens), which), strict=True))
    mixed = [self_attend(parts[letter], parts["v"]) for letter in terms]
    if similarity is not None:
        mixed.append(mix(similarity, parts["v"]))
    return block.project(sum(mixed) / len(mixed))


def cosine_similarity(tokens: Tensor) -> Tensor:
    """G = F F^T of unit rows, (B, N, C) to (B, N, N)."""
    rows = l2_normalise(tokens)
    return rows @ rows.transpose(1, 2)


def cut_below(similarity: Tensor, beta: float) -> Tensor:
    """thr_beta(G): entries below beta become 0."""
    return similarity.masked_fill(similarity < beta, 0.0)


def aggregate(similarity: Tensor, tokens: Tensor) -> Tensor:
    """rn(G) X: each row of G divided by its sum + 1e-6, then applied to tokens (B, N, C)."""
    weights = similarity / (similarity.sum(-1, keepdim=True) + 1e-6)
    return weights @ tokens.float()


def masked_similarity_attention(
    similarity: Tensor, scale: float = 3.0, beta: float = 1.0, mean: Tensor | None = None
) -> Tensor:
    """softmax over rows of B = scale (G - beta mean(G)), negative entries left out; (B, N, N).

    One map for all heads. The mean runs over the entries of one image, unless ``mean`` is given. A
    token always keeps itself, so that no row is empty.
    """
    mean = similarity.mean((1, 2), keepdim=True) if mean is None else mean
    bias = scale * (similarity - beta * mean)
    diagonal = torch.eye(bias.shape[-1], dtype=torch.bool, device=bias.device)
    return bias.masked_fill((bias < 0) & ~diagonal, float("-inf")).softmax(-1)


def sinkhorn(matrix: Tensor, iterations: int, epsilon: float = 1e-6) -> Tensor:
    """Rows divided by their sums, then columns by theirs, ``iterations`` times, (B, N, N).

    Zero columns stay zero.
    """
    for _ in range(iterations):
        matrix = matrix / matrix.sum(2, keepdim=True).clamp(min=epsilon)
        matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=epsilon)
    return matrix


def propagation(attention: Tensor) -> Tensor:
    """A (B, N, N) of summed attention among patches: Sinkhorn, symmetric, two steps."""
    balanced = sinkhorn(attention.mT, 3).mT  # columns first, rows last
    balanced = (balanced + balanced.mT) / 2
    return balanced @ balanced


def second_path(
    method: Method, windows: Tensor, blocks: int, term: Callable[[LayerState], Tensor]
) -> tuple[Tensor, Tensor]:
    """X^{L-blocks} plus the last blocks' terms, and the original path's X^{L-1}; both (B, T, C).

    Each term is made from the original path's state. Purification, where on, acts on the original
    path. Of the last block nothing but Q, K and V is made: its output is not in the second path.
    """
    trunk, grid, path = method.trunk, method.grid(windows), None

    def add(state: LayerState) -> None:
        nonlocal path
        path = (state.inputs if path is None else path) + term(state)

    last = trunk.layers
    stream = method.stream(windows, Hook(add, range(last - blocks + 1, last)))
    if not blocks:
        return trunk.step(last, stream, grid), stream
    add(trunk.begin(last, stream, grid))
    return path, stream
