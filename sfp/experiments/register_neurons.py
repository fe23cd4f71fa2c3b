"""Register neurons: the hidden units that make outlier tokens (Jiang et al., NeurIPS 2025, Sec. 3).

As nickjiang2378/test-time-registers finds them; statistics are per picture. What its notebook does
by eye (A.4: threshold, highest block, how many) is ``choose_neurons``, our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfp.clip.clip import FrozenCLIP
from sfp.clip.registers import Registers
from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError

TRIED = (1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 70, 100, 150, 200)
_GONE = 0.05  # of the outliers without registers, that may be left


@dataclass(frozen=True)
class Rule:
    """Which tokens are outliers, and which hidden units count.

    Attributes:
        threshold: outliers have a longer token after the block ``layer``; the class token, too.
        layer: 1-based block; -1 is L, -2 is L-1.
        sparse: leave out units that are active nearly everywhere: those of which fewer than
            ``share`` of the tokens lie below ``level``.
        level, share: see ``sparse``.
    """

    threshold: float
    layer: int = -1
    sparse: bool = True
    level: float = 0.5
    share: float = 0.5


@torch.inference_mode()
def neuron_scores(clip: FrozenCLIP, windows: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Mean size of each hidden unit on a picture's outlier tokens.

    Args:
        clip: the frozen CLIP.
        windows: (B, 3, H, W) normalised, each a picture of its own.
        rule: see there.

    Returns:
        Scores (L, M) float32, summed over the pictures that have outliers; outliers (B, P + N)
        bool; norms (B, P + N) after the looked-at block.
    """
    norms = token_norms(clip, windows)[:, rule.layer if rule.layer < 0 else rule.layer - 1]
    outliers = norms > rule.threshold
    total = torch.zeros(clip.trunk.layers, clip.trunk.blocks[0].hidden_width)

    def observe(state: LayerState) -> None:
        hidden = state.hidden.float() / clip.trunk.blocks[state.layer - 1].factor
        total[state.layer - 1] = unit_scores(hidden, outliers, rule).sum(0).cpu()

    if bool(outliers.any()):
        every = range(1, clip.trunk.layers + 1)
        clip.trunk.run(windows, [Hook(observe, every, point="neurons")])
    return total, outliers, norms


def unit_scores(hidden: Tensor, outliers: Tensor, rule: Rule) -> Tensor:
    """Scores (B, M) of a block's hidden units (B, T, M), 0 without outliers (B, T)."""
    weights = outliers.float() / outliers.sum(1, keepdim=True).clamp(min=1)
    scores = (hidden.abs() * weights[..., None]).sum(1)
    if not rule.sparse:
        return scores
    quiet = (hidden < rule.level).sum(1) >= rule.share * hidden.shape[1]
    return scores * quiet


@torch.inference_mode()
def token_norms(clip: FrozenCLIP, windows: Tensor, registers: Registers | None = None) -> Tensor:
    """Lengths of class token and patches after each block, (B, L, P + N) float32."""
    norms: list[Tensor] = []

    def observe(state: LayerState) -> None:
        norms.append(state.tokens[:, : state.rows.stop].float().norm(dim=-1))

    hooks = [registers.hook] if registers else []
    hooks.append(Hook(observe, range(1, clip.trunk.layers + 1)))
    clip.trunk.run(windows, hooks, registers=registers.count if registers else 0)
    return torch.stack(norms, 1)


def order_of(scores: Tensor) -> list[tuple[int, int]]:
    """(1-based block, unit) of scores (L, M), the largest first."""
    places = scores.flatten().argsort(descending=True, stable=True).tolist()
    return [(1 + place // scores.shape[1], place % scores.shape[1]) for place in places]


def by_block(neurons: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Units by block, ascending."""
    found: dict[int, list[int]] = {}
    for layer, unit in sorted(neurons):
        found.setdefault(layer, []).append(unit)
    return found


def usual_threshold(norms: Tensor, prefix: int = 1) -> float:
    """Mean plus three standard deviations of the patches' lengths (A.4), of norms (B, P + N)."""
    patches = norms[:, prefix:].double()
    return float(patches.mean() + 3 * patches.std())


def first_block(norms: Tensor, outliers: Tensor, threshold: float, prefix: int = 1) -> int:
    """The 1-based block after which at least half of the outlier patches are longer than the
    threshold.

    Args:
        norms: (B, L, P + N).
        outliers: (B, P + N).
        threshold: of the looked-at block.
    """
    places = outliers.clone()
    places[:, :prefix] = False  # patches alone
    long = (norms > threshold) & places[:, None]
    share = long.sum((0, 2)) / places.sum().clamp(min=1)
    reached = (share >= 0.5).nonzero()
    return int(reached[0, 0]) + 1 if len(reached) else norms.shape[1]


@dataclass(frozen=True)
class Found:
    """What ``choose_neurons`` found.

    Attributes:
        neurons: units by 1-based block.
        rule: by which outliers were told.
        highest: last block that was searched.
        tried: for each number of units the share of patches that stay outliers, 0 units first.
    """

    neurons: dict[int, list[int]]
    rule: Rule
    highest: int
    tried: dict[int, float]


@torch.inference_mode()
def choose_neurons(
    clip: FrozenCLIP,
    pictures: Sequence[Tensor],
    rule: Rule,
    *,
    threshold: float | None = None,
    highest: int | None = None,
    lowest: int = 1,
    count: int | None = None,
) -> Found:
    """Find the units of which the fewest end the outliers.

    Args:
        clip: the frozen CLIP.
        pictures: batches (B, 3, H, W) normalised.
        rule: its threshold is replaced by ``threshold``.
        threshold: ``usual_threshold`` if None.
        highest, lowest: 1-based blocks that are searched, both inclusive; up to ``first_block`` if
            None.
        count: how many units; of ``TRIED`` the first after which at most 5 percent of the outlier
            patches are left, or that which leaves the fewest, if None.

    Raises:
        SFPError: no picture has an outlier, or no block is left to search.
    """
    looked = rule.layer if rule.layer < 0 else rule.layer - 1
    norms = torch.cat([token_norms(clip, batch) for batch in pictures])
    prefix = clip.trunk.prefix
    threshold = usual_threshold(norms[:, looked], prefix) if threshold is None else threshold
    rule = replace(rule, threshold=threshold)
    outliers = norms[:, looked] > threshold
    if not bool(outliers[:, prefix:].any()):
        raise SFPError(
            f"No patch of {len(norms)} pictures is longer than {threshold:.3g} after the looked-at"
            " block; give more pictures, or a lower --threshold."
        )
    highest = first_block(norms, outliers, threshold, prefix) if highest is None else highest
    highest = min(highest, clip.trunk.layers - 1)
    scores = sum(neuron_scores(clip, batch, rule)[0] for batch in pictures)
    order = [place for place in order_of(scores) if lowest <= place[0] <= highest]
    if not order:
        raise SFPError(f"No block lies from {lowest} to {highest}; give other bounds.")
    tried = {0: float(outliers[:, prefix:].float().mean())}
    for number in TRIED if count is None else [count]:
        registers = Registers(by_block(order[:number]))
        edited = torch.cat([token_norms(clip, batch, registers)[:, looked] for batch in pictures])
        tried[number] = float((edited[:, prefix:] > threshold).float().mean())
        if tried[number] <= _GONE * tried[0]:
            break
    best = min((number for number in tried if number), key=lambda number: (tried[number], number))
    return Found(by_block(order[:best]), rule, highest, tried)
