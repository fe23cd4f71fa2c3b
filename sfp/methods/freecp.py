"""FreeCP: class purification of any method's maps, window by window (Chen et al., ICCV 2025).

"Training-Free Class Purification for Open-Vocabulary Semantic Segmentation"; chenqi1126/FreeCP.
Steps as its code computes them:

    n        the window's probabilities p = softmax(exp(logit scale) S), stretched to [0, 1]
    r_c      A (mask_c n_c), stretched to [0, 1]: A the affinity of the window's patches, mask_c the
             boxes around where n_c is large
    kept     classes with d_c = sum(p_c r_c) / (sum p_c + sum r_c) > rp_thres (redundancy)
    settled  kept classes whose maps overlap, J >= ap_thres: their region alone is shown to CLIP,
             and the class that fits it best stays (ambiguity)

The scores are the maps r_c of what stays, 0 elsewhere; windows average them. A pixel gets the class
of its largest map, or a background where 1 - max_c r_c is larger: no softmax, no threshold.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes
from sfp.methods._boxes import boxes_of, mask_of
from sfp.methods._connected import components
from sfp.methods._method import _warned
from sfp.methods._parts import propagation
from sfp.methods._wrapper import Wrapper
from sfp.options import Share
from sfp.stages import Text, View

_CROP = 112  # pixels of a region that is shown alone


@METHODS.register("FreeCP")
class FreeCP(Wrapper):
    """Refined maps of a base method, without redundant and ambiguous classes.

    Each query but those of a background is a class of its own until the end. MaskCLIP and SCLIP as
    bases have no residual but the FFN, as in the authors' code; their options say otherwise.

    Args:
        rp_thres: classes with less agreement of first and refined map are dropped.
        ap_thres: soft IoU of maps that makes two classes rivals.
        background_class: whether class 0 is a background; where its first word is "background", if
            None.
        sentences: a JSON file of the sentences that describe each word, {word: [sentence, ...]},
            with which regions shown alone are compared; the prompts' vectors if None.
    """

    rp_thres: Share = 0.1
    ap_thres: Share = 0.7
    background_class: bool | None = None
    sentences: str | os.PathLike | None = None

    changes = Changes("Chen et al., ICCV 2025", "the base's; maps refined, classes dropped")
    of_bases = {"MaskCLIP": dict(variant="ffn"), "SCLIP": dict(residual=False)}

    def prepare(self) -> None:
        super().prepare()
        self._described = None if self.sentences is None else read_sentences(self.sentences)
        self._second: dict[tuple[str, ...], Tensor] = {}  # of the vocabulary asked for last
        message = (
            "FreeCP has no sentences of the words; regions that it shows alone are compared with"
            " the prompts' vectors."
        )
        if self._described is None and message not in _warned:
            _warned.add(message)
            warnings.warn(message, stacklevel=2)

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """What the base needs, and the "affinity" A of the patches, (B, N, N)."""
        total, (h, w) = None, self.grid(windows)

        def integrate(state: LayerState) -> None:
            nonlocal total
            attention = state.patch_attention
            total = attention.clone() if total is None else total.add_(attention)

        hook = Hook(integrate, range(1, self.trunk.layers), Attention.MAP)
        self.wrapped.observers.append(hook)
        try:
            encoded = self.wrapped.encode(windows)
        finally:
            self.wrapped.observers.remove(hook)
        if total is None or total.shape[1] != h * w:  # the base pads its windows
            total = None
            self.wrapped.stream(windows, hook)
        return {**encoded, "affinity": propagation(total)}

    def score(self, view: View, text: Text) -> Tensor:
        """Maps of the queries that stay, (n, h, w, Q) in [0, 1]; 0 of background words."""
        grid = self.trunk.grid_of(*view.size)
        cosines = self.wrapped.cosines(view, text).permute(0, 3, 1, 2)
        if cosines.shape[-2:] != grid:  # a base may score on another grid
            cosines = F.interpolate(cosines, size=grid, mode="bilinear", antialias=True)
        probabilities = (self.clip.logit_scale * cosines.flatten(2)).softmax(1)  # p, (n, Q, N)
        foreground = self.foreground(text).to(probabilities.device)
        refined = refine(stretch(probabilities), view["affinity"], foreground, grid)
        kept = agreement(probabilities, refined) > self.rp_thres
        refined = refined * (kept & foreground)[..., None]
        stays = self.settle(refined, view, text)
        return (refined * stays[..., None]).unflatten(2, grid).permute(0, 2, 3, 1)

    def foreground(self, text: Text) -> Tensor:
        """Which queries are no background words, (Q,) bool."""
        background = self.background_class
        if background is None:
            background = bool(text.words) and text.words[0].lower() == "background"
        return torch.tensor([not (background and place == 0) for place in text.class_of_query])

    def settle(self, maps: Tensor, view: View, text: Text) -> Tensor:
        """Which classes stay after rivals were compared on their regions, (n, Q) bool.

        The regions of all windows go through the trunk as one batch.
        """
        kept = maps.amax(2) > 0
        grid, groups, crops = self.trunk.grid_of(*view.size), [], []
        for window in range(len(maps)):
            for group in rivals(maps[window], kept[window], self.ap_thres):
                heat = maps[window, group].mean(0).unflatten(0, grid)
                boxes = boxes_of(heat.float().cpu().numpy())
                flat = any(right <= left or bottom <= top for left, top, right, bottom in boxes)
                if boxes and not flat:  # else the whole group stays
                    groups.append((window, group, len(crops), len(crops) + len(boxes)))
                    crops += [self._crop(view, window, box) for box in boxes]
        if not crops:
            return kept
        seen, second = self._class_vectors(torch.stack(crops)), self.second_set(text)
        for window, group, first, last in groups:
            best = (seen[first:last] @ second[group].T).argmax(1)
            kept[window, group] = False
            kept[window, [group[place] for place in best.tolist()]] = True
        return kept

    def _crop(self, view: View, window: int, box: Sequence[int]) -> Tensor:
        """A box of a window's patches, (3, 112, 112) pixels."""
        y, x = view.boxes[window, :2].tolist()
        left, top, right, bottom = (self.trunk.patch * side for side in box)
        region = view.image[None, :, y + top : y + bottom, x + left : x + right]
        return F.interpolate(region.to(self.clip.device), size=(_CROP, _CROP), mode="bilinear")[0]

    def _class_vectors(self, crops: Tensor) -> Tensor:
        """Unit embeddings of crops (n, D)."""
        last, at_once = self.trunk.layers, self.trunk.windows_at_once(_CROP, _CROP)
        grid = self.trunk.grid_of(_CROP, _CROP)
        streams = (self.wrapped.stream(some, last=last) for some in crops.split(at_once))
        return l2_normalise(torch.cat([self.trunk.pooled(tokens, grid) for tokens in streams]))

    def second_set(self, text: Text) -> Tensor:
        """The vectors that regions shown alone are compared with, (Q, D)."""
        if self._described is None:
            return text.vectors
        if text.words not in self._second:
            self._second = {text.words: self._describe(text)}
        return self._second[text.words]

    def _describe(self, text: Text) -> Tensor:
        needed = zip(text.words, self.foreground(text).tolist(), strict=True)
        missing = [word for word, needs in needed if needs and word not in self._described]
        if missing or not text.words:
            raise SFPError(
                f"{self.sentences} has no sentences of {', '.join(map(repr, missing[:3]))};"
                " write some for each word, or leave sentences out."
            )
        return text.describe([self._described.get(word, [word]) for word in text.words])

    def decide(self, scores: Tensor, text: Text) -> Tensor:
        """The maps, and 1 - max_c r_c for a background."""
        background = ~self.foreground(text).to(scores.device)
        left = 1 - scores.amax(-1, keepdim=True)
        return torch.where(background, left, scores)


def stretch(probabilities: Tensor) -> Tensor:
    """n: (n, Q, N) with each window's minimum at 0 and its maximum at 1."""
    least, most = probabilities.amin((1, 2), keepdim=True), probabilities.amax((1, 2), keepdim=True)
    return (probabilities - least) / (most - least).clamp(min=torch.finfo(torch.float32).tiny)


def refine(maps: Tensor, affinity: Tensor, foreground: Tensor, grid: tuple[int, int]) -> Tensor:
    """r of maps n (n, Q, N): what A spreads from the boxes; 0 of background words."""
    masks = torch.zeros_like(maps)
    heats = maps.unflatten(2, grid).float().cpu().numpy()
    for window, of_window in enumerate(heats):
        for query in foreground.nonzero()[:, 0].tolist():
            mask = torch.from_numpy(mask_of(of_window[query]))
            masks[window, query] = mask.flatten().to(maps)
    spread = (masks * maps) @ affinity.mT
    least, most = spread.amin(2, keepdim=True), spread.amax(2, keepdim=True)
    return (spread - least) / (most - least + 1e-8) * foreground[:, None]


def agreement(first: Tensor, refined: Tensor) -> Tensor:
    """d of first maps p and refined ones r, (n, Q)."""
    return (first * refined).sum(2) / (first.sum(2) + refined.sum(2) + 1e-8)


def soft_iou(maps: Tensor) -> Tensor:
    """J of each pair of maps (K, N): (K, K)."""
    one, other = maps[:, None], maps[None]
    return torch.minimum(one, other).sum(2) / torch.maximum(one, other).sum(2)


def rivals(maps: Tensor, kept: Tensor, least: float) -> list[list[int]]:
    """Groups of two and more kept classes, connected by J >= ``least``, of maps (Q, N)."""
    queries = kept.nonzero()[:, 0]
    if len(queries) < 2:
        return []
    near = soft_iou(maps[queries]) >= least
    labels = components(near | torch.eye(len(queries), dtype=torch.bool, device=near.device))
    groups = [queries[labels == label].tolist() for label in labels.unique()]
    return [group for group in groups if len(group) > 1]


def read_sentences(file: str | os.PathLike) -> dict[str, list[str]]:
    """Sentences by word; raises SFPError for a file that can't be read or holds something else."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SFPError(
            f"The file of sentences {file} can't be read ({error}); give a JSON file of"
            " {word: [sentence, ...]}."
        ) from error
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(
        isinstance(own, list) and own and all(isinstance(s, str) for s in own) for own in lists
    ):
        raise SFPError(f"{file} holds something else than {{word: [sentence, ...]}}; write it so.")
    return found
