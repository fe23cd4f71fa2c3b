"""From averaged cosines to labels: enlarging, softmax over queries, synonyms, thresholds (methods.md 3.3).

Enlarged scores exist for some rows at a time only, so memory doesn't grow with queries x pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_BYTES = 128 << 20


def decode(
    scores: Tensor,
    size: tuple[int, int],
    class_of_query: Tensor,
    *,
    logit_scale: float = 40.0,
    prob_thd: float = 0.0,
    area_thd: float | None = None,
    keep_probabilities: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Labels of one image.

    Args:
        scores: averaged cosines (Q, h, w) float32.
        size: (H, W) of the label map.
        class_of_query: class index of each query (Q,), ascending.
        logit_scale: factor before the softmax over queries; a class has the probability of its best query.
        prob_thd: pixels whose best class is less probable become class 0.
        area_thd: classes (but class 0) whose share of all foreground pixels is not above it are dropped.
        keep_probabilities: also return the class probabilities.

    Returns:
        Labels (H, W) int64, and probabilities (K, H, W) float32 or None.
    """
    classes = int(class_of_query[-1]) + 1
    dropped = None
    if area_thd is not None:
        counts = torch.zeros(classes, dtype=torch.long, device=scores.device)
        for _, block in _class_probabilities(scores, size, class_of_query, logit_scale):
            counts += torch.bincount(block.argmax(0).flatten(), minlength=classes)
        foreground = counts[1:]
        dropped = torch.zeros(classes, dtype=torch.bool, device=scores.device)
        dropped[1:] = foreground <= area_thd * foreground.sum()
    labels = torch.empty(size, dtype=torch.long, device=scores.device)
    kept = torch.empty((classes, *size), dtype=torch.float32, device=scores.device) if keep_probabilities else None
    for rows, block in _class_probabilities(scores, size, class_of_query, logit_scale):
        if dropped is not None:
            block = block.masked_fill(dropped[:, None, None], 0.0)
        best, label = block.max(0)
        labels[rows] = label.masked_fill(best < prob_thd, 0)
        if kept is not None:
            kept[:, rows] = block
    return labels, kept


def _class_probabilities(
    scores: Tensor, size: tuple[int, int], class_of_query: Tensor, logit_scale: float
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of output rows with their class probabilities (K, rows, W)."""
    height, width = size
    rows_at_once = max(1, _BLOCK_BYTES // (len(scores) * width * 4))
    classes = int(class_of_query[-1]) + 1
    for top in range(0, height, rows_at_once):
        rows = slice(top, min(top + rows_at_once, height))
        probabilities = (enlarge_rows(scores, size, rows) * logit_scale).softmax(0)
        if len(class_of_query) > classes:
            index = class_of_query[:, None, None].expand_as(probabilities)
            empty = probabilities.new_zeros((classes, *probabilities.shape[1:]))
            probabilities = empty.scatter_reduce_(0, index, probabilities, "amax")
        yield rows, probabilities


def enlarge_rows(scores: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """Rows of ``F.interpolate(scores, size, mode="bilinear", align_corners=False)``: (Q, h, w) to (Q, rows, W)."""
    source_height, (height, width) = scores.shape[1], size
    if source_height == height:
        band = scores[:, rows]
    else:
        at = (torch.arange(rows.start, rows.stop, device=scores.device) + 0.5) * (source_height / height) - 0.5
        at = at.clamp(min=0)
        above = at.long().clamp(max=source_height - 1)
        below = (above + 1).clamp(max=source_height - 1)
        share = (at - above)[:, None]
        band = scores[:, above] * (1 - share) + scores[:, below] * share
    if band.shape[2] == width:
        return band
    return F.interpolate(band, size=width, mode="linear", align_corners=False)  # along columns only
