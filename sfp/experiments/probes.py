"""Probes of a frozen CLIP's layers on labelled windows.

coherence   AUROC of the cosine of patch pairs as a classifier of "same class" (SC-CLIP Fig. 4 and
            8, CLIPSeg Fig. 4), of each block's q, k, v, heads joined, and of its output tokens
alignment   after CLIPSeg's Fig. 6, whose formula we do not have; ours: the values that DSI would
            take from layer i go through the last block's W_o, LN_post and P, attention-free; mean
            over labelled patches of the cosine with their own class's text less the mean of the
            others', and the share of patches whose own class is the nearest ("accuracy")
entropy     of the attention of each patch and of the class token, -sum a log a / log(P + N), mean
            over heads; 1 is uniform
outliers    share of the patches that a detector flags; overlap of two, |A and B| / |A or B|
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.coherence import FEATURES, coherence, joined_heads, patch_labels
from sfp.clip.trunk import Attention, Hook, ImageTrunk, LayerState
from sfp.methods._connected import components
from sfp.methods._parts import cosine_similarity
from sfp.outliers import Detector

Figures = dict[tuple[str, int], list[float]]


def sampled_coherence(
    features: Tensor, labels: Tensor, pairs: int, seed: int = 0, ignore: int = 255
) -> float | None:
    """``coherence`` from at most so many of the patch pairs, drawn without replacement.

    Args:
        features: (N, C).
        labels: (N,) int; patches with ``ignore`` are left out.

    Returns:
        AUROC in [0, 1]; None where all pairs are of one kind.
    """
    kept = labels != ignore
    rows, labels = l2_normalise(features[kept]).cpu(), labels[kept]
    first, second = drawn_pairs(len(labels), pairs, seed)
    same = (labels[first] == labels[second]).numpy()
    if same.all() or not same.any():
        return None
    return float(roc_auc_score(same, (rows[first] * rows[second]).sum(1).numpy()))


def drawn_pairs(count: int, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many of the pairs i < j of ``count`` things, without replacement, as two int64 vectors."""
    first, second = np.triu_indices(count, 1)
    if len(first) > pairs:
        chosen = np.random.default_rng(seed).choice(len(first), pairs, replace=False)
        first, second = first[chosen], second[chosen]
    return torch.from_numpy(first), torch.from_numpy(second)


@torch.inference_mode()
def probe_layers(
    clip: FrozenCLIP,
    windows: Tensor,
    labels: Tensor,
    text: Tensor,
    class_of_query: Sequence[int],
    *,
    detectors: Sequence[Detector] = (),
    pairs: int | None = None,
    epsilon: float = 0.75,
    ignore: int = 255,
) -> Figures:
    """Every probe of every layer of windows.

    Args:
        clip: the frozen CLIP.
        windows: (B, 3, H, W) normalised.
        labels: (B, H, W) int.
        text: normalised text vectors (Q, D).
        class_of_query: class index of each of them.
        detectors: those whose outliers are counted and compared.
        pairs: patch pairs drawn for the coherence; all if None.
        ignore: label of pixels that are not evaluated.
        epsilon: of CLIPSeg's graph, for the number of its components.

    Returns:
        (probe, layer) to a list of figures, one for each window that has it. Probes are "q", "k",
        "v", "tokens" (coherence), "components", "alignment", "accuracy", "entropy", "cls entropy",
        a detector's name, and "A & B" of two detectors.
    """
    trunk = clip.trunk
    truth = patch_labels(labels, trunk.grid_of(*windows.shape[-2:]), trunk.patch, ignore).cpu()
    classes = torch.tensor(class_of_query)
    found: Figures = {}

    def add(probe: str, layer: int, values: Sequence[float | None]) -> None:
        kept = found.setdefault((probe, layer), [])
        kept.extend(float(value) for value in values if value is not None)

    def measure(features: Tensor, label: Tensor) -> float | None:
        if pairs is None:
            return coherence(features, label, ignore)
        return sampled_coherence(features, label, pairs, ignore=ignore)

    def look(state: LayerState) -> None:
        state.require_finite()
        layer = state.layer
        for name in FEATURES:
            rows = (
                state.patches
                if name == "tokens"
                else joined_heads(getattr(state, name), state.rows)
            )
            samples = zip(rows.float().cpu(), truth, strict=True)
            add(name, layer, [measure(own, label) for own, label in samples])
        near = cosine_similarity(joined_heads(state.k, state.rows)) >= epsilon
        graphs = components(near | torch.eye(near.shape[-1], dtype=torch.bool, device=near.device))
        add("components", layer, [len(own.unique()) for own in graphs])
        read = l2_normalise(trunk.readout(free_values(trunk, state)))
        scores = class_scores(read @ text.T.to(read.device), classes).cpu()
        for own, label in zip(scores, truth, strict=True):
            alignment, accuracy = text_alignment(own, label, ignore)
            add("alignment", layer, [alignment])
            add("accuracy", layer, [accuracy])
        of_cls, of_patches = attention_entropy(state.q, state.k, state.prefix)
        if trunk.class_token:
            add("cls entropy", layer, of_cls.tolist())
        add("entropy", layer, of_patches.tolist())
        masks = {detector.name: detector(state)[0] for detector in detectors}
        for name, mask in masks.items():
            add(name, layer, mask.float().mean(1).tolist())
        for (one, a), (other, b) in combinations(masks.items(), 2):
            add(f"{one} & {other}", layer, overlap(a, b))

    trunk.run(windows.to(clip.device), [Hook(look, range(1, trunk.layers + 1), Attention.MAP)])
    return found


def free_values(trunk: ImageTrunk, state: LayerState) -> Tensor:
    """What DSI takes from a layer, past the last block's W_o: patches (B, N, C).

    W_o W_v LN1_L(x~_i) with x~_i = X^{i-1} + MLP_i(LN2_i(X^{i-1})) below the last block, x~_L =
    X^{L-1}; biases included.
    """
    last, inputs = trunk.blocks[-1], state.inputs[:, state.rows]
    below = state.layer < trunk.layers
    free = inputs + trunk.blocks[state.layer - 1].mlp(inputs) if below else inputs
    return last.project(last.values(last.normed(free)))


def class_scores(cosines: Tensor, class_of_query: Tensor) -> Tensor:
    """Each class's best query: (B, N, Q) to (B, N, K)."""
    classes = int(class_of_query.max()) + 1
    best = cosines.new_full((*cosines.shape[:2], classes), -torch.inf)
    return best.scatter_reduce_(
        2, class_of_query.to(cosines.device).expand_as(cosines), cosines, "amax"
    )


def text_alignment(
    scores: Tensor, labels: Tensor, ignore: int = 255
) -> tuple[float | None, float | None]:
    """Alignment and accuracy of a window's scores (N, K) with labels (N,); None without labels."""
    kept = labels != ignore
    if not bool(kept.any()):
        return None, None
    scores, labels = scores[kept].float(), labels[kept].long()
    own = scores.gather(1, labels[:, None])[:, 0]
    others = (scores.sum(1) - own) / max(scores.shape[1] - 1, 1)
    return float((own - others).mean()), float((scores.argmax(1) == labels).float().mean())


def attention_entropy(q: Tensor, k: Tensor, prefix: int = 1) -> tuple[Tensor, Tensor]:
    """Entropy of softmax(Q K^T / sqrt(d_h)) as a share of the largest possible, mean over heads.

    Args:
        q, k: (B, heads, P + N, d_h).
        prefix: P.

    Returns:
        Of the first token's attention, which is the class token's where there is one, (B,), and the
        mean over the patches' (B,), float32.
    """
    logs = (q.float() @ k.float().transpose(2, 3) * q.shape[-1] ** -0.5).log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1).mean(1) / float(np.log(k.shape[2]))  # (B, P + N)
    return entropy[:, 0], entropy[:, prefix:].mean(1)


def overlap(a: Tensor, b: Tensor) -> list[float | None]:
    """|A and B| / |A or B| of masks (B, N), one for each row; None where both are empty."""
    both, either = (a & b).sum(1).tolist(), (a | b).sum(1).tolist()
    return [x / y if y else None for x, y in zip(both, either, strict=True)]
