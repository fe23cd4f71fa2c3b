"""Parts that several methods share: self-self attention, masked similarity, aggregation, Sinkhorn normalisation, second paths.

Similarities and their sums are float32, every statistic is per image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfp.clip.block import Block
from sfp.clip.clip import unit
from sfp.clip.kernels import attend, product
from sfp.clip.trunk import Hook, LayerState

if TYPE_CHECKING:
    from sfp.methods import Method


def self_attend(
    u: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale U U^T + bias) V per head, (B, heads, T, d_h); scale is 1 / sqrt(width of U) unless given."""
    return attend(u, u, v, bias=bias, scale=scale)


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """A V with one map (B, N, N) for all heads of V (B, heads, N, d_h)."""
    joined = product(weights.to(v.dtype), v.transpose(1, 2).flatten(2))
    return joined.unflatten(2, (v.shape[1], -1)).transpose(1, 2)


def correlate(block: Block, tokens: Tensor, terms: str, similarity: Tensor | None = None) -> Tensor:
    """W_o concat(A V) + b_o of tokens (B, N, C), A the mean of softmax(U U^T / sqrt(d_h)) for each U among Q, K and V.

    Args:
        block: whose projections are taken.
        terms: the letters of U, such as "k" or "qk".
        similarity: a further map for all heads, (B, N, N).
    """
    which = "qkv"[min("qkv".index(letter) for letter in terms + "v") :]
    parts = dict(zip(which, block.qkv(block.normed(tokens), which), strict=True))
    mixed = [self_attend(parts[letter], parts["v"]) for letter in terms]
    mixed += [] if similarity is None else [mix(similarity, parts["v"])]
    return block.project(sum(mixed) / len(mixed))


def cosine_similarity(tokens: Tensor) -> Tensor:
    """G = F F^T of unit rows, (B, N, C) to (B, N, N)."""
    rows = unit(tokens)
    return product(rows, rows.transpose(1, 2))


def cut_below(similarity: Tensor, beta: float) -> Tensor:
    """thr_beta(G): entries below beta become 0."""
    return similarity.masked_fill(similarity < beta, 0.0)


def aggregate(similarity: Tensor, tokens: Tensor) -> Tensor:
    """rn(G) X: each row of G divided by its sum + 1e-6, then applied to tokens (B, N, C)."""
    weights = similarity / (similarity.sum(-1, keepdim=True) + 1e-6)
    return product(weights, tokens.float())


def masked_similarity_attention(
    similarity: Tensor, scale: float = 3.0, beta: float = 1.0
) -> Tensor:
    """softmax over rows of B = scale (G - beta mean(G)), negative entries left out; (B, N, N), one map for all heads.

    The mean runs over the entries of one image. A token always keeps itself, so that no row is empty.
    """
    bias = scale * (similarity - beta * similarity.mean((1, 2), keepdim=True))
    diagonal = torch.eye(bias.shape[-1], dtype=torch.bool, device=bias.device)
    return bias.masked_fill((bias < 0) & ~diagonal, float("-inf")).softmax(-1)


def sinkhorn(matrix: Tensor, iterations: int, epsilon: float = 1e-6) -> Tensor:
    """Rows divided by their sums, then columns by theirs, ``iterations`` times; zero columns stay zero. (B, N, N)."""
    for _ in range(iterations):
        matrix = matrix / matrix.sum(2, keepdim=True).clamp(min=epsilon)
        matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=epsilon)
    return matrix


def second_path(
    method: Method, windows: Tensor, blocks: int, term: Callable[[LayerState], Tensor]
) -> tuple[Tensor, Tensor]:
    """X^{L-blocks} plus the last blocks' terms, each made from the original path's state, and the original path's X^{L-1}.

    Both (B, 1 + N, C). Purification, where on, acts on the original path, from which the second one draws. Of the last
    block nothing but Q, K and V is made: its output is not in the second path.
    """
    last = method.trunk.layers
    new: list[Tensor] = []

    def add(state: LayerState) -> None:
        new.append((new.pop() if new else state.inputs) + term(state))

    stream = method.stream(windows, Hook(add, range(last - blocks + 1, last)))
    if blocks:
        add(method.trunk.begin(last, stream, method.trunk.grid_of(*windows.shape[-2:])))
        return new[0], stream
    return method.trunk.step(last, stream, method.trunk.grid_of(*windows.shape[-2:])), stream
