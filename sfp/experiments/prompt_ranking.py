"""Ranking of prompts for FLOSS: how surely each one reads each class on unlabelled images.

The entropy of a prompt and a class is the mean over the pixels that the prompt reads as the class
of -sum_k P_k ln P_k, P_k a class's best query's probability (yasserben/FLOSS).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfp.errors import SFPError
from sfp.files import unwritable, whole_file
from sfp.pipeline import Pipeline
from sfp.pipeline.decode import best_of_synonyms
from sfp.stages import Text, View


@torch.inference_mode()
def prompt_entropies(
    pipeline: Pipeline, view: View, text: Text, prompts: Tensor, size: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of one image that each prompt reads as each class.

    Args:
        pipeline: of the base method.
        view: of the image.
        text: the queries.
        prompts: unit vectors of the queries in each prompt, (P, Q, D).
        size: (H, W) of the label map.
        scale: of the averaged cosines before the softmax.

    Returns:
        Entropies (P, K) float64 and numbers of pixels (P, K) int64.
    """
    classes = text.class_of_query[-1] + 1
    place = torch.tensor(text.class_of_query, device=pipeline.device)
    sums = torch.zeros(len(prompts), classes, dtype=torch.float64)
    counts = torch.zeros(len(prompts), classes, dtype=torch.long)
    for number, vectors in enumerate(prompts):
        scores = pipeline.score(view, replace(text, vectors=vectors)).resized(size)
        for _, _, tile in scores.tiles():
            p = best_of_synonyms((scale * tile).softmax(-1), place, classes).flatten(0, 1)
            entropy = -(p * (p + 1e-10).log()).sum(-1)
            label = p.argmax(-1).cpu()
            sums[number].index_add_(0, label, entropy.double().cpu())
            counts[number] += torch.bincount(label, minlength=classes)
    return sums, counts


def ranked(sums: Tensor, counts: Tensor, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """For each class its prompts, the surest first, equal ones by number; of summed
    ``prompt_entropies``.

    Entropy is 0 where a prompt reads no pixel as the class; ``pixel_percentage`` is of all pixels.
    """
    means, pixels = sums / counts.clamp(min=1), counts.sum(1, keepdim=True).clamp(min=1)
    shares = 100 * counts / pixels
    found = {}
    for number, name in enumerate(names):
        order = means[:, number].argsort(stable=True).tolist()
        found[name] = [
            {
                "template_id": prompt,
                "entropy": round(float(means[prompt, number]), 6),
                "pixel_percentage": round(float(shares[prompt, number]), 6),
                "rank": rank,
            }
            for rank, prompt in enumerate(order)
        ]
    return found


class Journal:
    """Sums of finished images in a file, a line each, so that an interrupted ranking goes on.

    Each line begins with a SHA-256 over itself and the run, so that one that is cut is dropped.

    Args:
        file: where.
        run: what the sums depend on, plain values.

    Raises:
        SFPError: the file is of another run, or can't be read or written.
    """

    def __init__(self, file: Path, run: dict[str, Any]):
        self.file, head = file, json.dumps(run, sort_keys=True)
        self._seal = hashlib.sha256(head.encode())
        self.done: dict[str, tuple[Tensor, Tensor]] = {}
        try:
            first, *lines = file.read_text().split("\n") if file.is_file() else [head]
            if first != head:
                raise SFPError(
                    f"{file} is of a ranking of other weights, options, names or images;"
                    " delete it, or choose another --out."
                )
            for line in lines:
                proof, _, content = line.partition(" ")
                if proof == self._proof(content):
                    name, sums, counts = json.loads(content)
                    self.done[name] = torch.tensor(sums, dtype=torch.float64), torch.tensor(counts)
            with whole_file(file) as partial:  # without what was cut
                partial.write_text("\n".join([head, *map(self._line, self.done)]) + "\n")
        except OSError as error:
            raise unwritable(file, error) from error

    def _proof(self, content: str) -> str:
        digest = self._seal.copy()
        digest.update(content.encode())
        return digest.hexdigest()[:16]

    def add(self, name: str, sums: Tensor, counts: Tensor) -> None:
        """Keep the sums of a finished image."""
        self.done[name] = sums, counts
        try:
            with self.file.open("a") as out:
                out.write(self._line(name) + "\n")
        except OSError as error:
            raise unwritable(self.file, error) from error

    def _line(self, name: str) -> str:
        content = json.dumps([name, *(part.tolist() for part in self.done[name])])
        return f"{self._proof(content)} {content}"

    def total(self) -> tuple[Tensor, Tensor]:
        """The sums of all images in the order of their names."""
        parts = [self.done[name] for name in sorted(self.done)]
        return sum(sums for sums, _ in parts), sum(counts for _, counts in parts)
