"""Outliers whose truth is known: what they do in each layer, and which detectors find them.

Made for Toyland, whose outliers follow a rule (``sfp.datasets.toyland_outliers``); any windows
with a mask of their outliers will do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.coherence import patch_labels
from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.experiments.probes import class_scores, free_values
from sfp.outliers import Detector, repair

TOKEN_FIGURES = {
    "length": "length of outliers / of others",
    "cls": "class token's attention to outliers, %",
    "patches": "patches' attention to outliers, %",
    "away": "outliers that look at themselves less than the class token does, %",
    "own": "other patches that look at themselves more than the class token does, %",
    "near": "others' attention to other patches within two patches, %",
    "right": "outliers read as their place, %",
    "repaired": "the same, repaired by their neighbours, %",
    "elsewhere": "outliers read as something elsewhere in the window, %",
    "others": "other patches read as their place, %",
}


@torch.inference_mode()
def token_figures(
    clip: FrozenCLIP,
    windows: Tensor,
    truth: Tensor,
    labels: Tensor,
    text: Tensor,
    *,
    layers: Collection[int] | None = None,
    repairs: Sequence[Hook] = (),
    registers: int = 0,
) -> dict[str, list[float]]:
    """What outliers do in each layer 1..L: ``TOKEN_FIGURES`` to a figure a layer.

    A patch is read as the values that the last block would take from it are (``free_values``),
    each for itself. "elsewhere" are classes of at least three patches of the window, but not its
    own; "repaired" reads the mean of the clean neighbours.

    Args:
        clip: the frozen CLIP.
        windows: (B, 3, H, W) normalised.
        truth: the outliers, (B, N) bool, at least one in each window.
        labels: (B, H, W) int, 255 where there is none.
        text: a normalised vector for each class, (K, D).
        layers: those that are looked at; all if None.
        repairs, registers: hooks and appended tokens of the run; none, the plain stream, by
            default.
    """
    trunk = clip.trunk
    grid = trunk.grid_of(*windows.shape[-2:])
    places = patch_labels(labels, grid, trunk.patch, 255).cpu().long()
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    apart = torch.cdist(*[torch.stack([rows, columns], -1).flatten(0, 1).float()] * 2, p=torch.inf)
    near, other = ((apart <= 2) & (apart > 0)).float(), (apart > 0).float()
    known = places != 255
    present = torch.zeros(len(places), 256).scatter_add_(1, places, torch.ones(places.shape)) >= 3
    figures: dict[str, list[float]] = {name: [] for name in TOKEN_FIGURES}

    def read(patches: Tensor) -> Tensor:
        state = LayerState(trunk.layers, grid, torch.cat([patches[:, :1], patches], 1), patches)
        cosines = l2_normalise(trunk.readout(free_values(trunk, state)).float()) @ text.T
        return class_scores(cosines, torch.arange(len(text))).argmax(-1).cpu()

    def observe(state: LayerState) -> None:
        outliers, others = truth, ~truth
        of_cls = state.attention[:, 0, 1:].float().cpu()
        among = state.attention[:, 1:, 1:].float().cpu()
        own, lengths = among.diagonal(dim1=1, dim2=2), state.patches.float().norm(dim=-1).cpu()
        clean = among * others[:, None]
        found = read(state.patches)
        fixed = read(repair(state.patches, truth.to(state.tokens.device), grid))
        there = present.gather(1, found) & (found != places)
        of = {
            "length": _mean(lengths, outliers) / _mean(lengths, others),
            "cls": 100 * (of_cls * outliers).sum(1).mean(),
            "patches": 100 * _mean((among * outliers[:, None]).sum(2), others),
            "away": 100 * _mean((own < of_cls).float(), outliers),
            "own": 100 * _mean((own > of_cls).float(), others),
            "near": 100
            * _mean((clean * near).sum(2) / (clean * other).sum(2).clamp(min=1e-6), others),
            "right": 100 * _mean((found == places).float(), outliers & known),
            "repaired": 100 * _mean((fixed == places).float(), outliers & known),
            "elsewhere": 100 * _mean(there.float(), outliers & known),
            "others": 100 * _mean((found == places).float(), others & known),
        }
        for name, value in of.items():
            figures[name].append(float(value))

    looked = range(1, trunk.layers + 1) if layers is None else layers
    hooks = [*repairs, Hook(observe, looked, Attention.MAP)]
    trunk.run(windows.to(clip.device), hooks, registers=registers)
    return figures


@torch.inference_mode()
def detection_figures(
    clip: FrozenCLIP, windows: Tensor, truth: Tensor, detectors: Sequence[Detector]
) -> dict[str, dict[str, list[float]]]:
    """What detectors find in each layer 1..L-1 of the plain stream, in percent.

    Args:
        clip, windows, truth: see ``token_figures``.
        detectors: each looks at every layer.

    Returns:
        For each detector's name "flagged" (share of all patches), "precision" (0 where it flags
        none) and "recall", a figure for each layer.
    """
    trunk = clip.trunk
    figures = {d.name: {kind: [] for kind in ("flagged", "precision", "recall")} for d in detectors}

    def observe(state: LayerState) -> None:
        for detector in detectors:
            mask = detector(state)[0].cpu()
            hits = (mask & truth).sum()
            own = figures[detector.name]
            own["flagged"].append(float(100 * mask.float().mean()))
            own["precision"].append(float(100 * hits / mask.sum().clamp(min=1)))
            own["recall"].append(float(100 * hits / truth.sum()))

    trunk.run(windows.to(clip.device), [Hook(observe, range(1, trunk.layers), Attention.MAP)])
    return figures


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
