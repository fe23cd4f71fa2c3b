"""SFP-release: what SFP's public code computes (Kimsure/SFP), two of its states.

    2026-03  SC-CLIP with another detector, an added q-q term, the similarity cut before it serves
             as attention, and a second stream mixed by it alone:
             Dec(Z, c) = W_o concat(1/3 [softmax(K K^T / s) + softmax(Q Q^T / s) + softmax(B)] V)
             + b_o + rho c, B of the similarity after the cut; M is mixed by softmax(B) alone
    2025-12  no similarity of patches; both streams go through the same attention:
             Y = Dec(Xr, c) + Dec(M_pat, M_cls), M = X^4 + ... + X^11, X^{L-1} before its repair
             Dec(Z, c) = W_o concat(1/2 [softmax(K K^T / s) + softmax(Q Q^T / s)] V) + b_o + rho c

with s = sqrt(d_h) and rho = res_cls. Both differ from the paper: outliers are repaired after block
L-1 alone, and HAI is absent. What is known of each state: docs/methods.md.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sfp.errors import SFPError
from sfp.methods import METHODS, Changes
from sfp.methods._parts import correlate, cut_below, masked_similarity_attention
from sfp.methods.sc_clip import PUBLISHED, SCCLIP

# the constants of each state, the same for every depth that has these layers, as in the code
RELEASES = {"2026-03": PUBLISHED[12, 16], "2025-12": dict(fuse_layers=(4, 11), res_cls=0.3)}


@METHODS.register("SFP-release")
class SFPRelease(SCCLIP):
    """SFP as released. The SOM factor is 5 times ``res_cls``.

    Args:
        release: the state of the code, "2026-03" or "2025-12", which made 61.4 on VOC21. The latter
            has ``fuse_layers`` and ``res_cls`` of the options alone: other ones raise SFPError.
        beta: 0.4 if None.
    """

    release: Literal["2026-03", "2025-12"] = "2026-03"
    beta: float | None = None

    changes = Changes(
        "Kimsure/SFP, code of 2026",
        "q-q + k-k + similarity of a middle layer",
        "last block's, of two streams",
        "L; reads 4..10",
        residual=False,
        ffn=False,
    )
    published = dict(purify=True, pm="SOM", purify_layers=[-2])

    def prepare(self) -> None:
        if self.release == "2026-03":
            self.fill(beta=0.4)
        for name in ("pre_layer", "post_layer", "beta"):
            if self.release == "2025-12" and getattr(self, name) is not None:
                raise SFPError(
                    f"{name} of SFP-release is {getattr(self, name)!r}, but its release 2025-12 has"
                    f" no similarity of patches; leave {name} out, or give release='2026-03'."
                )
        constants = RELEASES[self.release]
        self.use_constants(constants, constants if self.trunk.layers >= 12 else None)
        som = dict(cls_factor=5 * self.res_cls, max_outliers=10)
        lof = dict(k=30, contamination=0.05)
        self.detector_published = {"SOM": som, "L2": dict(topk=10), "LOF": lof}

    def tokens(self, windows: Tensor) -> Tensor:
        if self.release == "2026-03":
            return super().tokens(windows)
        last = self.trunk.layers - 1
        stream, cache = self.run_with_cache(
            windows, tokens=self.fused - {last}, unrepaired=self.fused & {last}
        )
        paths = [stream, sum(cache.values())] if cache else [stream]  # Xr with c, M
        return sum(self._dec(path, self.patch_rows(windows)) for path in paths)

    def _dec(self, path: Tensor, rows: slice) -> Tensor:
        """Dec(Z, c) of 2025-12: all tokens (B, T, C) to patches (B, N, C)."""
        return correlate(self.last_block, path[:, rows], "kq") + self.class_term(path)

    def similarity_attention(self, g_pre: Tensor) -> Tensor:
        return masked_similarity_attention(cut_below(g_pre, self.beta))

    def decode(self, tokens: Tensor, attention: Tensor) -> Tensor:
        return correlate(self.last_block, tokens, "kq", attention)

    def decode_fused(self, tokens: Tensor, attention: Tensor) -> Tensor:
        return correlate(self.last_block, tokens, "", attention)
