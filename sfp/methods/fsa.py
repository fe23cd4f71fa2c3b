"""FSA: the output's likeness between patches feeds the last attention (ICCV 2025).

Feedback self-adaptive attention; official repository: chi-chi-zx/FSA, released over ProxyCLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.kernels import linear
from sfp.methods import METHODS, Changes, Method
from sfp.methods._base import LOGITS, build_base, finish, last_logits, summed_softmax
from sfp.methods.proxyclip import ProxyCLIP
from sfp.options import Positive, Share
from sfp.stages import Text, View

_MAP_BYTES = 64 << 20  # of one map of several windows


@METHODS.register("FSA")
class FSA(Method):
    """A = (A_n A_0 + A_0 A_n + A_n) / 3, A_0 the base's last attention.

    P_i is the softmax over queries of 20 cos(F_i, T_q) less 35 cos of the same with uniform
    attention; s_ij = 1 / (1 + KL(P_i || P_j)). Of each row the largest s are kept, up to a share of
    their softmax's sum, and A_n = softmax of s exp(lambda s) over them. Features without text are
    the base's. The code has ProxyCLIP alone; its README calls FSA a plug-in: over a base with a
    class token A_n joins the patches alone, and A_0 is each head's own.

    Args:
        base: ProxyCLIP, or NACLIP, ClearCLIP, SCLIP, CLIP; with options as
            ``ProxyCLIP:proxy=colour`` or ``dict(type="ProxyCLIP", proxy="colour")``.
        sharpness: lambda; as published 2.3 for H/14, else 3.0, and 4.5 for MAE as the proxy.
        kept_share: of the softmax's sum.
        text_scale: of the cosines.
        uniform_scale: of the cosines with uniform attention.
    """

    base: str | Mapping[str, Any] = "ProxyCLIP"
    sharpness: Positive | None = None
    kept_share: Share = 0.45
    text_scale: Positive = 20.0
    uniform_scale: Positive = 35.0

    changes = Changes(
        "ICCV 2025", "the base's + likeness of labels", "the base's", residual=False, ffn=False
    )

    def prepare(self) -> None:
        bases = ["ProxyCLIP", *LOGITS]
        self.wrapped = build_base(self, bases, "one last attention")
        self.backbones = self.wrapped.backbones
        huge = (self.trunk.layers, self.trunk.patch) == (32, 14)
        self.fill(sharpness=2.3 if huge else 3.0)

    def tokens(self, windows: Tensor) -> Tensor:
        return self.first(windows)[0]

    def features(self, windows: Tensor) -> Tensor:
        tokens, _, grid = self.first(windows)
        return self.trunk.readout(tokens).unflatten(1, grid)

    def first(self, windows: Tensor) -> tuple[Tensor, dict[str, Tensor], tuple[int, int]]:
        """The base's Y (B, N', C), what the second pass needs of the first, and the grid."""
        stream, block, base = self.stream(windows), self.last_block, self.wrapped
        if isinstance(base, ProxyCLIP):
            weights, grid = base.attention(windows)
            values = base.values(stream, self.grid(windows), grid)
            parts = {"attention": weights[:, None], "values": values}
            mixed = weights[:, None] @ values
        else:
            q, k, v = block.qkv(block.normed(stream))
            grid = self.grid(windows)
            maps = summed_softmax(base, last_logits(base, q, k), grid)
            rows, values = self.patch_rows(windows), v.float()
            mixed, stream = maps[:, :, rows] @ values, stream[:, rows]
            parts = {"attention": maps[:, :, rows, rows], "values": values[:, :, rows]}
            parts["stream"] = stream
        return finish(base, stream, mixed), {**parts, "mixed": mixed}, grid

    # ------------------------------------------------------------------ with text
    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """The base's unit "features"; its map "attention" and "values" V of patches, "mixed" A_0 V.

        Where the base has a residual, also "stream", X^{L-1}.
        """
        if isinstance(self.wrapped, ProxyCLIP):
            windows = self.wrapped.padded(windows)
        tokens, parts, grid = self.first(windows)
        features = l2_normalise(self.trunk.readout(tokens)).unflatten(1, grid)
        return {"features": features, **parts}

    def score(self, view: View, text: Text) -> Tensor:
        """Cosines (n, h', w', Q) of the second pass; for padded windows at their pixels."""
        tokens = self.second(view, text).unflatten(1, view["features"].shape[1:3])
        scores = linear(l2_normalise(self.trunk.readout(tokens)), text.vectors)
        if isinstance(self.wrapped, ProxyCLIP):
            scores = self.wrapped.cropped(scores, view.size)
        return scores

    def second(self, view: View, text: Text) -> Tensor:
        """Y of the second pass, (n, N', C); some windows at a time."""
        views = view["values"].shape
        at_once, found = max(1, _MAP_BYTES // (4 * views[2] ** 2)), []
        for start in range(0, views[0], at_once):
            own = {name: part[start : start + at_once] for name, part in view.encoded.items()}
            likeness = self.likeness(self.contrast(own, text))
            joint = self.adapted(likeness, self.kept(likeness))[:, None]  # A_n
            attention, values = own["attention"], own["values"]
            mixed = joint @ own["mixed"] + attention @ (joint @ values) + joint @ values
            found.append(finish(self.wrapped, own.get("stream"), mixed / 3))
        return torch.cat(found)

    def contrast(self, parts: Mapping[str, Tensor], text: Text) -> Tensor:
        """20 cos - 35 cos with uniform attention, (n, N', Q)."""
        uniform = parts["values"].mean(2, keepdim=True)
        uniform = self.trunk.readout(finish(self.wrapped, parts.get("stream"), uniform))
        scores = self.text_scale * linear(parts["features"].flatten(1, 2), text.vectors)
        return scores - self.uniform_scale * linear(l2_normalise(uniform), text.vectors)

    def likeness(self, scores: Tensor) -> Tensor:
        """s_ij = 1 / (1 + KL(P_i || P_j)) of scores (n, N', Q), (n, N', N')."""
        p = scores.softmax(-1)
        logs = (p + 1e-10).log()
        divergence = (p * logs).sum(-1, keepdim=True) - p @ logs.transpose(1, 2)
        return 1 / (1 + divergence.clamp(min=0))

    def kept(self, likeness: Tensor) -> Tensor:
        """Mask of the entries of each row that stay, (n, N', N')."""
        ordered, places = likeness.sort(dim=-1, descending=True, stable=True)
        inside = ordered.softmax(-1).cumsum(-1) <= self.kept_share
        inside[..., 0] = True
        return torch.zeros_like(inside).scatter(-1, places, inside)

    def adapted(self, likeness: Tensor, kept: Tensor) -> Tensor:
        """A_n, (n, N', N')."""
        logits = likeness * (self.sharpness * likeness).exp()
        return logits.masked_fill(~kept, float("-inf")).softmax(-1)
