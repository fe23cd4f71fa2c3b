"""From averaged cosines to labels: softmax over queries or a sigmoid of each, synonyms, thresholds,
tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.errors import by_halves
from sfp.pipeline.score_map import ScoreMap
from sfp.transfer import count_of_each, to_device


def decode(
    scores: ScoreMap,
    class_of_query: Tensor,
    *,
    logit_scale: float = 40.0,
    prob_thd: float = 0.0,
    area_thd: float | None = None,
    keep_probabilities: bool | Literal["label"] = False,
    decide: Callable[[Tensor], Tensor] | None = None,
    sigmoid: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Labels of one image.

    Class 0 may have no query: a background that is only a label. Its probability is ``prob_thd``.

    Args:
        scores: averaged cosines of Q queries at the label map's size (H, W).
        class_of_query: class index of each query (Q,), ascending, on the CPU.
        logit_scale: factor before the softmax over queries; a class has its best query's
            probability.
        prob_thd: pixels whose best class is less probable become class 0.
        area_thd: classes (but class 0) whose share of all foreground pixels is not above it are
            dropped.
        keep_probabilities: also return the class probabilities; "label": that of each pixel's label
            alone.
        decide: what makes of scores (rows, columns, Q) the values in [0, 1] that are compared, in
            the place of the scaled softmax.
        sigmoid: t and b: each query's probability is sigmoid(t s + b) by itself, instead of the
            scaled softmax.

    Returns:
        Labels (H, W) int64, and probabilities (K, H, W), of the labels alone (H, W), float32 or
        None.
    """
    own = dict(logit_scale=logit_scale, prob_thd=prob_thd, area_thd=area_thd, decide=decide)
    own |= dict(keep_probabilities=keep_probabilities, sigmoid=sigmoid)
    classes_of = tuple(class_of_query.tolist())
    on_device = to_device(class_of_query, scores.cells.device)
    work = partial(_decode, scores, classes_of, on_device, **own)
    return by_halves(work, scores.tile_bytes)


def _decode(
    scores: ScoreMap,
    classes_of: tuple[int, ...],
    class_of_query: Tensor,
    most: int,
    *,
    logit_scale: float,
    prob_thd: float,
    area_thd: float | None,
    keep_probabilities: bool | Literal["label"],
    decide: Callable[[Tensor], Tensor] | None,
    sigmoid: tuple[float, float] | None,
) -> tuple[Tensor, Tensor | None]:
    """``decode``, with ``most`` bytes of scores at a time; the classes also on the device."""
    device, classes = scores.cells.device, classes_of[-1] + 1
    unasked = classes_of[0] > 0
    labels = torch.empty(scores.size, dtype=torch.long, device=device)
    dropped = None
    if area_thd is not None:
        counts = torch.zeros(classes, dtype=torch.long, device=device)
        for rows, columns, tile in _decided(scores, decide, most):
            labels[rows, columns] = class_of_query[tile.argmax(-1)]
            counts += count_of_each(labels[rows, columns], classes)
        dropped = counts <= area_thd * counts[1:].sum()
        dropped[0] = False
    own = keep_probabilities == "label"
    size = scores.size if own else (classes, *scores.size)
    kept = torch.empty(size, device=device) if keep_probabilities else None
    for rows, columns, tile in _decided(scores, decide, most):
        # of a sigmoid, and with a rule of its own, the logits are the probabilities' logarithms
        if sigmoid is not None:
            logits = F.logsigmoid(tile.mul_(sigmoid[0]).add_(sigmoid[1]))
        else:
            logits = tile.mul_(logit_scale) if decide is None else tile.log()
        total = None
        if prob_thd > 0 or keep_probabilities:
            softmax = decide is None and sigmoid is None
            total = logits.logsumexp(-1) if softmax else logits.new_zeros(logits.shape[:-1])
        if dropped is not None:  # after the softmax's sum: their probability becomes 0
            logits.masked_fill_(dropped[class_of_query], float("-inf"))
        best, query = logits.max(-1)  # the best class has the best query
        label = class_of_query[query]
        probability = None if total is None else (best - total).exp()
        if prob_thd > 0:
            fallen = probability < prob_thd
            label.masked_fill_(fallen, 0)
            if own and not unasked:  # then theirs is that of class 0, not that of the best class
                first = logits[..., : classes_of.count(0)].amax(-1)
                probability = torch.where(fallen, (first - total).exp(), probability)
            elif own:
                probability.masked_fill_(fallen, prob_thd)
        labels[rows, columns] = label
        if own:
            kept[rows, columns] = probability
        elif kept is not None:
            probabilities = logits.sub_(total[..., None]).exp_()
            if classes_of != tuple(range(classes)):
                probabilities = best_of_synonyms(probabilities, class_of_query, classes)
            kept[:, rows, columns] = probabilities.permute(2, 0, 1)
    if kept is not None and unasked and not own:
        kept[0] = prob_thd
    return labels, kept


def _decided(
    scores: ScoreMap, decide: Callable[[Tensor], Tensor] | None, most: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The tiles of scores after a rule, if there is one."""
    for rows, columns, tile in scores.tiles(most):
        yield rows, columns, tile if decide is None else decide(tile)


def best_of_synonyms(probabilities: Tensor, class_of_query: Tensor, classes: int) -> Tensor:
    """Probabilities of queries (..., Q) to those of classes (..., K)."""
    empty = probabilities.new_zeros(*probabilities.shape[:-1], classes)
    return empty.scatter_reduce_(-1, class_of_query.expand_as(probabilities), probabilities, "amax")
