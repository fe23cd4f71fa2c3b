"""Planted outliers: known tokens of a clean model made into artefacts like CLIP's own, so that detectors and repair have a truth.

CLIP's artefact is a few patch tokens that from some middle layer on have a large norm, draw the class token's and the other
patches' attention, say little of their own place, and stay in the stream up to the last layer (SFP, ICCV 2025, Fig. 1; "Vision
transformers need registers", ICLR 2024). Planted is that: after block l each of k random patches P of a window becomes

    X^l_i + s m u  for i in P,    m = mean over all patches j of ||X^l_j||,    ||u|| = 1

s is the strength, in lengths of a usual token, and u a direction without mean over channels that draws the class token's attention
in the layers j = l+1..L-1 after it, from their weights and the class token's mean query q_j over some windows:

    u = argmax of  sum over j of mean over heads of  [q_j . k_j(u) - lambda q_j(u) . k_j(u)] / sqrt(d_h)

k_j(u) and q_j(u) are the key and the query that layer j makes of a token that is nothing but u: W LN1_j(u) + b. As s grows LN1
leaves nothing else of the token, so that what it showed is lost and the logits saturate there. With lambda = 0 the argmax has a
closed form, the sum over j of gamma_j * W_k,j^T q_j, centred and normalised, gamma_j the scale of LN1_j: such a token draws every
query that is like the class token's, its own too. With lambda above 0 (a local maximum, by gradient ascent from there) it draws the class
token and looks away from itself, which is SFP's picture of an outlier (Eq. 4, a_ii < a_cls,i). Nothing else is touched: what the
tokens do to the others is the model's own doing.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.block import Block
from sfp.clip.clip import FrozenCLIP, unit
from sfp.clip.trunk import Hook, ImageTrunk, LayerState
from sfp.errors import SFPError
from sfp.outliers.repair import repair

_STEPS = 200  # of the ascent; twice as many give the same direction


@dataclass(frozen=True)
class Planting:
    """What is planted; see the module's text for the symbols.

    Attributes:
        layer: l, 1-based, below L - 1, so that a later layer's attention sees it before the last block.
        count: k, at each window.
        strength: s; 0 plants nothing.
        seed: of the places, which depend on it and the window's pixels alone: the same for all strengths, detectors and methods.
        undone: the planted tokens are at once repaired by their neighbours, as a detector that knows the places would do; what a
            method then loses is the price of the repair alone.
    """

    layer: int
    count: int = 10
    strength: float = 0.0
    seed: int = 0
    undone: bool = False

    def places(self, windows: Tensor, patches: int) -> Tensor:
        """P of windows (B, 3, H, W): mask (B, N) bool on their device.

        Raises:
            SFPError: more outliers than patches.
        """
        if not 0 <= self.count <= patches:
            raise SFPError(f"{self.count} outliers can't be planted among {patches} patches; give a count from 0 to {patches}.")
        mask = np.zeros((len(windows), patches), bool)
        for own, window in zip(mask, windows.float().cpu().numpy(), strict=True):
            chance = np.random.default_rng([self.seed, zlib.crc32(np.ascontiguousarray(window))])
            own[chance.choice(patches, self.count, replace=False)] = True
        return torch.from_numpy(mask).to(windows.device)


def drawing_direction(trunk: ImageTrunk, windows: Tensor, layer: int, selfless: float = 0.0) -> Tensor:
    """u, a direction (C,) float32 that draws the class token's attention in layers layer+1..L-1.

    Args:
        trunk: a clean model's.
        windows: (B, 3, H, W) normalised, over which the class token's queries are averaged.
        layer: l.
        selfless: lambda.

    Raises:
        SFPError: no layer between l and L.
    """
    if not 1 <= layer < trunk.layers - 1:
        raise SFPError(f"Outliers can't be planted after layer {layer}; give a layer from 1 to {trunk.layers - 2}.")
    layers = [trunk.blocks[i] for i in range(layer, trunk.layers - 1)]
    queries: list[Tensor] = []
    average = Hook(lambda state: queries.append(state.q[:, :, 0].float().mean(0)), range(layer + 1, trunk.layers))
    with torch.no_grad():  # not inference mode: the gradient needs them
        trunk.run(windows, [average], trunk.layers - 1)
        drawn = [b.module.ln_1.weight * (_of_keys(b.in_weight).T @ q.flatten()) for b, q in zip(layers, queries, strict=True)]
        u = unit(_centred(torch.stack(drawn).sum(0)))
    if selfless:
        u = u.clone().requires_grad_()
        optimiser = torch.optim.Adam([u], lr=0.01, maximize=True)
        with torch.enable_grad():
            for _ in range(_STEPS):
                optimiser.zero_grad()
                _pull(layers, queries, u, selfless).backward()
                optimiser.step()
    return unit(_centred(u.detach()))


def _pull(layers: Sequence[Block], queries: Sequence[Tensor], u: Tensor, selfless: float) -> Tensor:
    """What u maximises."""
    total = u.new_zeros(())
    for block, query in zip(layers, queries, strict=True):
        norm = block.module.ln_1
        inputs = F.layer_norm(u, u.shape, norm.weight, norm.bias, eps=0.0)
        q, k, _ = F.linear(inputs, block.in_weight.float(), block.in_bias.float()).view(3, *query.shape)
        total = total + ((query - selfless * q) * k).sum(1).mean() * query.shape[1] ** -0.5
    return total


def _of_keys(in_weight: Tensor) -> Tensor:
    """W_k (C, C) float32 of the joint projection (3 C, C)."""
    return in_weight.float().chunk(3)[1]


def _centred(u: Tensor) -> Tensor:
    return u - u.mean()


class PlantedTrunk(ImageTrunk):
    """An image trunk in whose stream outliers are planted before any other hook of that layer looks.

    Args:
        trunk: the clean one; its weights are shared.
        planting: what to plant.
        direction: u, (C,).

    Attributes:
        planted: P of the last run, (B, N) bool.
    """

    def __init__(self, trunk: ImageTrunk, planting: Planting, direction: Tensor):
        super().__init__(trunk.visual)
        self.planting, self.direction = planting, direction
        self.planted: Tensor | None = None

    def run(self, windows: Tensor, hooks: Sequence[Hook] = (), last: int | None = None, resize: str = "scale") -> Tensor:
        h, w = self.grid_of(*windows.shape[-2:])
        self.planted = self.planting.places(windows, h * w)
        return super().run(windows, [Hook(self._plant, [self.planting.layer]), *hooks], last, resize)

    def _plant(self, state: LayerState) -> Tensor:
        planting, patches = self.planting, state.patches
        if planting.undone:
            return torch.cat([state.tokens[:, :1], repair(patches, self.planted, state.grid)], 1)
        usual = patches.float().norm(dim=-1).mean(1)[:, None, None]  # m
        added = planting.strength * usual * self.direction * self.planted[..., None]
        return torch.cat([state.tokens[:, :1], patches + added.to(patches.dtype)], 1)


def plant(clip: FrozenCLIP, planting: Planting, direction: Tensor) -> FrozenCLIP:
    """The same frozen CLIP with outliers planted in its stream: every method built on it meets them. Nothing is copied."""
    planted = copy.copy(clip)
    planted.trunk = PlantedTrunk(clip.trunk, planting, direction)
    return planted
