"""ResCLIP: attention of middle blocks and a first segmentation feed the last block (CVPR 2025).

Official repository: yvhangyang/ResCLIP, whose code is followed, roundings to half included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.kernels import linear
from sfp.clip.trunk import Hook
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes, Method
from sfp.methods._base import LOGITS, build_base, finish, last_logits, summed_softmax
from sfp.methods._parts import attention_map
from sfp.methods._sfr import feedback, patch_labels
from sfp.options import Positive, Share
from sfp.refiners.pamr import pamr
from sfp.stages import Text, View

_PIXEL_BYTES = 256 << 20  # of scores at the pixels of several windows


@METHODS.register("ResCLIP")
class ResCLIP(Method):
    """The base's last block with A <- tau_r ((1 - lambda_r) A + lambda_r R).

    RCS: R is the mean q-k attention of blocks 6 to 9. SFR, which needs the text: a first pass is
    scored, refined by PAMR and labelled; like patches get M, and a second pass has the logits
    E <- tau_s ((1 - lambda_s) E + lambda_s M). Features without text are those of the first pass.
    The authors choose the constants for each dataset; the defaults are those of Context59.

    Args:
        base: NACLIP, ClearCLIP, SCLIP or CLIP; with options as ``NACLIP:sigma=5`` or
            ``dict(type="NACLIP", sigma=5.0)``.
        rcs: whether the middle blocks' attention is added.
        sfr: whether the first segmentation feeds a second pass.
        rcs_layers: blocks of R; 6 to 9 at every depth, scaled where there are fewer than 10.
        rcs_mix: tau_r and lambda_r.
        sfr_mix: tau_s and lambda_s.
        sfr_scale: of the first pass' scores before the softmax over queries.
        temp_thd: less probable pixels of the first pass get the first query's label.
    """

    base: str | Mapping[str, Any] = "NACLIP"
    rcs: bool = True
    sfr: bool = True
    rcs_layers: tuple[int, ...] | None = None
    rcs_mix: tuple[float, ...] = (2.0, 0.4)
    sfr_mix: tuple[float, ...] = (1.8, 0.7)
    sfr_scale: Positive = 40.0
    temp_thd: Share = 0.25

    changes = Changes(
        "Yang et al., CVPR 2025",
        "the base's + q-k of middle blocks + labels",
        layers="L; reads 6..9",
        residual=False,
        ffn=False,
    )

    def prepare(self) -> None:
        self.wrapped = build_base(self, list(LOGITS), "a last attention that can be added to")
        deep = self.trunk.layers >= 10
        self.fill_constants(
            dict(rcs_layers=(6, 7, 8, 9)), dict(rcs_layers=(6, 7, 8, 9)) if deep else None
        )
        self.rcs_layers = self.check_layers("rcs_layers", self.rcs_layers)
        for part in ("rcs", "sfr"):
            if len(getattr(self, f"{part}_mix")) != 2:
                raise SFPError(
                    f"{part}_mix of ResCLIP is {getattr(self, f'{part}_mix')}; give two"
                    " numbers, tau and lambda, such as (2.0, 0.4)."
                )
        if not self.rcs and not self.sfr:
            raise SFPError(
                f"rcs and sfr of ResCLIP are both False, which leaves {self.wrapped.name};"
                f" name that as the method, or keep a part."
            )

    def tokens(self, windows: Tensor) -> Tensor:
        return self.last(*self.before(windows), self.grid(windows))

    def before(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        """X^{L-1} (B, T, C), and R (B, heads, T, T) or None."""
        maps: list[Tensor] = []
        hook = Hook(lambda state: maps.append(attention_map(state.q, state.k)), self.rcs_layers)
        stream = self.stream(windows, *([hook] if self.rcs else []))
        return stream, sum(maps) / len(maps) if maps else None

    def last(
        self,
        stream: Tensor,
        middle: Tensor | None,
        grid: tuple[int, int],
        bias: Tensor | None = None,
    ) -> Tensor:
        """The base's last block with R, and with M (B, N, N) in half precision: Y (B, N, C)."""
        block = self.last_block
        q, k, v = block.qkv(block.normed(stream), grid=grid)
        logits = last_logits(self.wrapped, q, k)
        if bias is not None:
            tau, share = self.sfr_mix
            before = self.trunk.prefix
            after = stream.shape[1] - before - bias.shape[1]
            sides = (before, after, before, after)  # nothing for other tokens
            bias = F.pad(share * bias, sides)[:, None]
            logits = [tau * ((1 - share) * own + bias) for own in logits]
        maps = summed_softmax(self.wrapped, logits, grid)
        if middle is not None:
            tau, share = self.rcs_mix
            maps = tau * ((1 - share) * maps + share * middle)
        patches = self.trunk.rows(grid)
        return finish(self.wrapped, stream[:, patches], maps[:, :, patches].to(v.dtype) @ v)

    # ------------------------------------------------------------------ SFR
    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit "features" of the first pass; for the second also "stream" and "middle", R."""
        stream, middle = self.before(windows)
        grid = self.grid(windows)
        tokens = self.last(stream, middle, grid)
        encoded = {"features": l2_normalise(self.trunk.readout(tokens)).unflatten(1, grid)}
        if self.sfr:
            encoded["stream"] = stream
            if middle is not None:
                encoded["middle"] = middle
        return encoded

    def score(self, view: View, text: Text) -> Tensor:
        """Cosines (n, h, w, Q) of the second pass, or of the first one without SFR."""
        if not self.sfr:
            return super().score(view, text)
        tokens = self.second(view, text).unflatten(1, view["features"].shape[1:3])
        return linear(l2_normalise(self.trunk.readout(tokens)), text.vectors)

    def second(self, view: View, text: Text) -> Tensor:
        """Y of the second pass, (n, N, C); some windows at a time."""
        height, width = view.size
        scores, pixels = super().score(view, text), view.crops().to(text.vectors.device)
        at_once = max(1, _PIXEL_BYTES // (4 * len(text) * height * width))
        at_once = min(at_once, self.trunk.windows_at_once(height, width))
        found = []
        for start in range(0, len(scores), at_once):
            some = slice(start, start + at_once)
            relation = feedback(self.labels(scores[some], pixels[some]))
            bias = relation / relation.amax((1, 2), keepdim=True)
            middle = view["middle"][some] if self.rcs else None
            grid = tuple(scores.shape[1:3])
            found.append(self.last(view["stream"][some], middle, grid, bias.half()))
        return torch.cat(found)

    def labels(self, scores: Tensor, pixels: Tensor) -> Tensor:
        """Labels (n, h, w) of patches, of windows' pixels (n, 3, H, W) and cosines (n, h, w, Q)."""
        probabilities = self.probabilities(scores, pixels)
        best, labels = probabilities.max(1)
        labels = labels.masked_fill(best < self.temp_thd, 0)
        return patch_labels(labels, self.trunk.patch, scores.shape[-1])

    def probabilities(self, scores: Tensor, pixels: Tensor) -> Tensor:
        """The first pass' probabilities of queries, (n, Q, H, W)."""
        maps = scores.permute(0, 3, 1, 2)
        maps = F.interpolate(maps, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return (self.sfr_scale * pamr(pixels, maps, 10, (8, 16))).softmax(1)
