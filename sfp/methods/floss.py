"""FLOSS: for each class the few prompts that read it most surely (Benigmim et al., ICCV 2025).

"FLOSS: Free Lunch in Open-vocabulary Semantic Segmentation"; yasserben/FLOSS. Only the text side
changes. ``tools/rank_prompts.py`` ranks the prompts on unlabelled images by the entropy of the
pixels that each reads as a class; the expert of class k has all queries in the mean of its
``top_n`` best prompts. With P^k = softmax(scale S) of expert k, a pixel takes P^k whole where k is
expert k's own answer; of several such experts that of the largest P^k_k; where there is none the
probabilities of all prompts. The scores are these probabilities; windows average them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes
from sfp.methods._wrapper import Wrapper
from sfp.options import Positive, Range
from sfp.stages import Text, View

_HINT = "make one with tools/rank_prompts.py"
_CACHE_BYTES, _GPU_BYTES = 4 << 20, 256 << 20  # of one expert's probabilities at a time


@METHODS.register("FLOSS")
class FLOSS(Wrapper):
    """Experts for each class over a base method's cosines.

    Args:
        ranking: the file of ``tools/rank_prompts.py`` for these weights, base, prompts and classes;
            without one nothing can be scored.
        top_n: how many prompts an expert has.
        fusion_scale: scale of the cosines before the softmax.
    """

    base: str | Mapping[str, Any] = "NACLIP"
    ranking: str | os.PathLike | None = None
    top_n: Annotated[int, Range(1)] = 4
    fusion_scale: Positive = 100.0

    changes = Changes("Benigmim et al., ICCV 2025", "the base's; text of experts by class")
    softmaxed = True

    def prepare(self) -> None:
        super().prepare()
        self._ranking = None if self.ranking is None else self._read(Path(self.ranking))
        self._experts: dict[tuple, Tensor] = {}  # of the vocabulary asked for last

    def changed_options(self) -> dict[str, Any]:
        """As every method's, without the ranking, which there must be."""
        changed = super().changed_options()
        return {name: value for name, value in changed.items() if name != "ranking"}

    def score(self, view: View, text: Text) -> Tensor:
        """Probabilities at the windows' pixels, (n, H, W, Q)."""
        classes = sorted(set(text.class_of_query))
        expert_of_query = [classes.index(place) for place in text.class_of_query]
        return self.fuse(view, text, self.experts(text), expert_of_query)

    def fuse(
        self, view: View, text: Text, experts: Tensor, expert_of_query: Sequence[int]
    ) -> Tensor:
        """The probabilities that pixels take, (n, H, W, Q) float32.

        One expert at a time, some rows of a window at a time: never those of all experts.

        Args:
            view: the windows.
            text: the queries in all prompts.
            experts: unit vectors of the queries by each expert, (E, Q, D).
            expert_of_query: which expert is that of each query.
        """
        expert_of_query = torch.tensor(expert_of_query, device=text.vectors.device)
        chosen, surest = None, None
        for number, vectors in enumerate([text.vectors, *experts], -1):
            scores = self.wrapped.cosines(view, replace(text, vectors=vectors))
            maps = (self.fusion_scale * scores).softmax(-1)  # (n, h, w, Q)
            if chosen is None:  # the default, -1
                chosen = maps.new_empty(len(maps), *view.size, len(text))
                surest = maps.new_zeros(chosen.shape[:3])
            for window, rows, pixels in _enlarged(maps, view.size):
                if number < 0:
                    chosen[window, rows] = pixels
                else:
                    own = expert_of_query == number
                    take_surer(chosen[window, rows], surest[window, rows], pixels, own)
        return chosen

    def experts(self, text: Text) -> Tensor:
        """Unit vectors (E, Q, D), an expert for each class that has queries, in their order.

        A class that no prompt reads anywhere has all of them.

        Raises:
            SFPError: no ranking, or one of other prompts or without one of the classes.
        """
        if self._ranking is None:
            raise SFPError(f"FLOSS has no ranking of prompts; {_HINT} and name it in ranking=FILE.")
        key = (text.words, text.class_of_query)
        if key not in self._experts:
            if text.bank is None or list(text.bank.prompts) != self._ranking["prompts"]:
                raise SFPError(
                    f"The ranking {self.ranking} is of other prompts than these; {_HINT} with them."
                )
            single = text.prompts()  # (Q, P, D)
            own = [self._prompts_of(text, place) for place in sorted(set(text.class_of_query))]
            rows = [l2_normalise(single[:, chosen].mean(1)) for chosen in own]
            self._experts = {key: torch.stack(rows)}
        return self._experts[key].to(text.vectors.device)

    def _prompts_of(self, text: Text, place: int) -> list[int]:
        """Numbers of the prompts of a class's expert."""
        name = text.words[text.class_of_query.index(place)]
        if name not in self._ranking["classes"]:
            raise SFPError(
                f"The ranking {self.ranking} has no class {name!r}; {_HINT} with these names."
            )
        ranked = self._ranking["classes"][name]
        best = [row["template_id"] for row in ranked if row["pixel_percentage"] > 0]
        return best[: self.top_n] or list(range(len(self._ranking["prompts"])))

    def _read(self, file: Path) -> dict[str, Any]:
        """The ranking of these weights; raises SFPError for a file that can't be read, or that has
        none of these weights and this base.
        """
        found = read_rankings(file).get(self.clip.fingerprint)
        if found is None:
            raise SFPError(
                f"The file of rankings {file} has none of these weights ({self.clip.name},"
                f" {self.clip.pretrained}, SHA-256 {self.clip.fingerprint[:12]}...); {_HINT}."
            )
        base = found["base"]
        if base != self.wrapped.name:
            raise SFPError(
                f"The ranking of prompts {file} is of the base {base}, not of"
                f" {self.wrapped.name}; {_HINT} with it."
            )
        return found


def read_rankings(file: Path) -> dict[str, dict[str, Any]]:
    """Rankings by the fingerprint of their weights; raises SFPError for what is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        for ranking in found.values():
            ranking["base"], ranking["prompts"], ranking["classes"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SFPError(
            f"The file of rankings of prompts {file} can't be read ({error!r}); {_HINT}."
        ) from error
    return found


def take_surer(chosen: Tensor, surest: Tensor, expert: Tensor, own: Tensor) -> None:
    """Give pixels an expert's probabilities, in place, where its answer is a query of its own and
    surer than those of the experts before.

    Args:
        chosen: the probabilities so far, (..., Q).
        surest: those of the answers that they were taken for, 0 where none was, (...).
        expert: the expert's probabilities, (..., Q).
        own: which queries are its own, (Q,) bool.
    """
    best, query = expert.max(-1)
    hit = own[query] & (best > surest)
    chosen[hit], surest[hit] = expert[hit], best[hit]


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, slice, Tensor]]:
    """Maps (n, h, w, Q) bilinear at their windows' pixels (align_corners=False), some rows at a
    time: the window, the rows, and their pixels (rows, W, Q).
    """
    budget = _CACHE_BYTES if maps.device.type == "cpu" else _GPU_BYTES
    at_once = max(1, budget // (4 * size[1] * maps.shape[3]))
    down, across = (
        F.interpolate(torch.eye(cells)[None], size=length, mode="linear")[0].T.to(maps)
        for cells, length in zip(maps.shape[1:3], size, strict=True)
    )
    for window, own in enumerate(maps):
        for top in range(0, size[0], at_once):
            rows = slice(top, top + at_once)
            spread = (down[rows] @ own.flatten(1)).unflatten(1, own.shape[1:])  # (rows, w, Q)
            yield window, rows, across @ spread
