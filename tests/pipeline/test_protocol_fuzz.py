"""Windows, stitching, resizing, synonyms and thresholds against a slow, plain reading, on what
hypothesis thinks of: the reference walks window by window and pixel by pixel in float64 and shares
no code with ``sfp.pipeline``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfp.clip.text_bank import TextBank
from sfp.methods import build_method
from sfp.pipeline import Pipeline, Protocol, Task, score_map
from sfp.stages import Text

PATCH = 16
CLOSE = 2e-4  # of probabilities, float32 against float64


# ------------------------------------------------------------------------------------------------
# the plain reading
def windows_along(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """[start, end) along one axis (4.2)."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(j * stride + crop, length) for j in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps (h, w, Q) at height x width pixels, align_corners=False, one pixel after the other."""
    h, w, _ = values.shape
    out = np.empty((height, width, values.shape[2]))
    for y in range(height):
        fy = max((y + 0.5) * h / height - 0.5, 0)
        y0, y1 = int(fy), min(int(fy) + 1, h - 1)
        for x in range(width):
            fx = max((x + 0.5) * w / width - 0.5, 0)
            x0, x1 = int(fx), min(int(fx) + 1, w - 1)
            upper = values[y0, x0] * (1 - (fx - x0)) + values[y0, x1] * (fx - x0)
            lower = values[y1, x0] * (1 - (fx - x0)) + values[y1, x1] * (fx - x0)
            out[y, x] = upper * (1 - (fy - y0)) + lower * (fy - y0)
    return out


def averaged(
    image: torch.Tensor, text: torch.Tensor, method, crop: int, stride: int, size: tuple[int, int]
) -> np.ndarray:
    """Averaged scores (H, W, Q) at the label map's size (4.3).

    Each window alone through the model.
    """
    height, width = image.shape[1:]
    rows = windows_along(height, crop, stride) if crop else [(0, height)]
    columns = windows_along(width, crop, stride) if crop else [(0, width)]
    canvas, visits = np.zeros((height, width, len(text))), np.zeros((height, width, 1))
    for top, bottom in rows:
        for left, right in columns:
            window = image[None, :, top:bottom, left:right]
            scores = method.scores(window, text)[0].double().numpy()
            canvas[top:bottom, left:right] += bilinear(scores, bottom - top, right - left)
            visits[top:bottom, left:right] += 1
    return bilinear(canvas / visits, *size)


def class_probabilities(scores: np.ndarray, groups: list[int], scale: float) -> np.ndarray:
    """Softmax over queries, the best query for each class (3.3, 1 and 2): (H, W, K)."""
    logits = scale * scores
    logits -= logits.max(-1, keepdims=True)
    queries = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.stack(
        [
            queries[..., [q for q, own in enumerate(groups) if own == c]].max(-1)
            for c in range(max(groups) + 1)
        ],
        -1,
    )


def allowed(
    probabilities: np.ndarray, prob_thd: float, area_thd: float | None
) -> np.ndarray | None:
    """Which labels are right where (H, W, K): one, or several where float32 may decide otherwise
    (3.3, 3 and 4); None where the area rule may."""
    classes = probabilities.shape[-1]
    probabilities = probabilities.copy()
    if area_thd is not None:
        top2 = np.sort(probabilities, -1)[..., ::-1]
        unsure = int((top2[..., 0] - top2[..., 1] < CLOSE).sum()) if classes > 1 else 0
        counts = np.bincount(probabilities.argmax(-1).ravel(), minlength=classes)
        foreground = counts[1:].sum()
        for c in range(1, classes):
            if abs(counts[c] - area_thd * foreground) <= 2 * unsure + 1e-3 and not (
                unsure == 0 and counts[c] == area_thd * foreground
            ):
                return None
            if not counts[c] > area_thd * foreground:
                probabilities[..., c] = 0
    best = probabilities.max(-1, keepdims=True)
    right = (probabilities >= best - CLOSE) & (probabilities > 0)
    below, near = best[..., 0] < prob_thd, np.abs(best[..., 0] - prob_thd) < CLOSE
    if prob_thd > 0:
        right[below & ~near] = False
        right[below | near, 0] = True
    return right


# ------------------------------------------------------------------------------------------------
# what is thought of
@dataclass(frozen=True)
class Case:
    images: list[tuple[int, int]]
    sizes: list[tuple[int, int]]
    protocol: Protocol
    groups: list[list[int]]
    at_once: int
    tile_bytes: int
    seed: int


@st.composite
def cases(draw) -> Case:
    window = draw(st.one_of(st.just(0), st.integers(PATCH, 56)))
    images = draw(
        st.lists(st.tuples(st.integers(PATCH, 60), st.integers(PATCH, 60)), min_size=1, max_size=2)
    )
    most = max(max(image) for image in images)
    least = max(1, (most - window) // 3) if window else 1  # few windows
    stride = draw(st.integers(min(least, window), window)) if window else 7
    label_maps = [draw(st.tuples(st.integers(1, 36), st.integers(1, 36))) for _ in images]
    groups = [
        [
            c
            for c, words in enumerate(draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
            for _ in range(words)
        ]
        for _ in range(draw(st.integers(1, 2)))
    ]
    protocol = Protocol(
        window=window,
        stride=stride,
        logit_scale=draw(st.sampled_from([0.5, 10.0, 40.0, 65.0, 200.0])),
        prob_thd=draw(st.one_of(st.just(0.0), st.floats(0, 1, width=16))),
        area_thd=draw(st.one_of(st.none(), st.floats(0, 1, width=16))),
    )
    at_once, tile_bytes, seed = (
        draw(st.integers(1, 5)),
        draw(st.sampled_from([64, 1000, 1 << 22])),
        draw(st.integers(0, 9)),
    )
    return Case(images, label_maps, protocol, groups, at_once, tile_bytes, seed)


# over 5 s: the plain reading of each case is a slow one
@given(case=cases())
def test_equals_the_plain_reading(clip, case):
    random = torch.Generator().manual_seed(case.seed)
    images = [torch.randn(3, *size, generator=random) for size in case.images]
    method = build_method("MaskCLIP", clip)
    pipeline = Pipeline(method, TextBank(clip, cache_dir=False), case.protocol, case.at_once)
    tasks = []
    for groups in case.groups:
        text = torch.nn.functional.normalize(
            torch.randn(len(groups), clip.embed_dim, generator=random), dim=1
        )
        tasks.append(Task(Text(text, class_of_query=tuple(groups)), case.protocol))
    usual, score_map._CACHE_BYTES = score_map._CACHE_BYTES, case.tile_bytes
    try:
        found = pipeline.segment(images, tasks, case.sizes, keep_probabilities=True)
        without = pipeline.segment(images, tasks, case.sizes)
    finally:
        score_map._CACHE_BYTES = usual
    for task, of_task, plain in zip(tasks, found, without, strict=True):
        groups = list(task.text.class_of_query)
        for image, size, (labels, kept), (again, nothing) in zip(
            images, case.sizes, of_task, plain, strict=True
        ):
            with torch.inference_mode():
                scores = averaged(
                    image,
                    task.text.vectors,
                    method,
                    case.protocol.window,
                    case.protocol.stride,
                    size,
                )
            probabilities = class_probabilities(scores, groups, case.protocol.logit_scale)
            assert labels.shape == size and nothing is None and torch.equal(labels, again)
            right = allowed(probabilities, case.protocol.prob_thd, case.protocol.area_thd)
            if right is None:
                continue
            assert np.take_along_axis(right, labels.numpy()[..., None], -1).all()
            if case.protocol.area_thd is None:
                np.testing.assert_allclose(
                    kept.permute(1, 2, 0).numpy(), probabilities, atol=CLOSE, rtol=0
                )
