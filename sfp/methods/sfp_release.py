"""SFP-release: what SFP's public code computes (Kimsure/SFP; methods.md 1.12), two of its states.

    2026-03  SC-CLIP with another detector, an added q-q term, the similarity cut before it serves
             as attention, and a second stream mixed by it alone:
             Dec(Z, c) = W_o concat(1/3 [softmax(K K^T / s) + softmax(Q Q^T / s) + softmax(B)] V)
             + b_o + rho c, B of the similarity after the cut; M is mixed by softmax(B) alone
    2025-12  no similarity of patches; both streams go through the same attention:
             Y = Dec(Xr, c) + Dec(M_pat, M_cls), M = X^4 + ... + X^11, X^{L-1} before its repair
             Dec(Z, c) = W_o concat(1/2 [softmax(K K^T / s) + softmax(Q Q^T / s)] V) + b_o + rho c

with s = sqrt(d_h) and rho = res_cls. Both differ from the paper: outliers are repaired after block
L-1 alone, and HAI is absent. What is known of each state, official figures too: docs/methods.md.
"""

from __future__ import annotations

from torch import Tensor

from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Card
from sfp.methods._parts import correlate, cut_below, masked_similarity_attention
from sfp.methods.sc_clip import PUBLISHED, SCCLIP

# the constants of each state, the same for every depth that has these layers, as in the code
RELEASES = {"2026-03": PUBLISHED[12, 16], "2025-12": dict(fuse_layers=(4, 11), res_cls=0.3)}
# what 2025-12 has not: the two similarities, and other ways to fuse
SIMILARITY = ("pre_layer", "post_layer", "beta", "enhance", "aggregation", "similarity", "fusion")


@METHODS.register("SFP-release")
class SFPRelease(SCCLIP):
    """SFP as released: a state of its authors' code, 2026-03 unless told.

    The options are SC-CLIP's; the SOM factor is 5 times ``res_cls``. 2025-12 has ``fuse_layers``,
    ``res_cls`` and ``correlation`` of them: giving it others raises SFPError.
    """

    release: str = "2026-03"  # or "2025-12", which made 61.4 on VOC21
    res_cls: float = 0.3
    correlation: str = "kq"
    # SC-CLIP's values, if None
    beta: float | None = None
    enhance: bool | None = None
    aggregation: str | None = None
    similarity: str | None = None
    fusion: str | None = None

    card = Card(
        "Kimsure/SFP, code of 2026",
        "q-q + k-k + similarity of a middle layer",
        "last block's, of two streams",
        "L; reads 4..10",
        False,
        False,
    )
    own_pm = "SOM"
    choices = {
        "release": tuple(RELEASES),
        "fusion": (None, *SCCLIP.choices["fusion"]),
        "aggregation": (None, *SCCLIP.choices["aggregation"]),
    }

    def prepare(self) -> None:
        self.of_twelve = RELEASES[self.release]
        for name in SIMILARITY:
            value = getattr(self, name)
            if self.release == "2025-12" and value is not None:
                raise SFPError(
                    f"{name} of SFP-release is {value!r}, but its release 2025-12 has no similarity"
                    f" of patches and one way to fuse; leave {name} out, or give release='2026-03'."
                )
            if self.release == "2026-03" and value is None:
                setattr(self, name, getattr(SCCLIP, name))
        super().prepare()
        if self.release == "2026-03" and self.fused and self.fusion == "pass" and not self.enhance:
            raise SFPError(
                "SFP-release mixes its second stream by softmax(B) alone; with enhance=False give fuse_layers=[], too."
            )
        som = dict(cls_factor=5 * self.res_cls, max_outliers=10)
        self.own_detector_options = {
            "SOM": som,
            "L2": dict(topk=10),
            "LOF": dict(k=30, contamination=0.05),
        }

    def published_constants(self) -> dict | None:
        return self.of_twelve if self.trunk.layers >= 12 else None

    def tokens(self, windows: Tensor) -> Tensor:
        if self.release == "2026-03":
            return super().tokens(windows)
        fused: list[Tensor] = []
        last = self.trunk.layers - 1

        def fuse(state: LayerState) -> None:
            fused.append(fused.pop() + state.tokens if fused else state.tokens)

        unrepaired, others = Hook(fuse, self.fused & {last}), Hook(fuse, self.fused - {last})
        hooks = [unrepaired, *self.hooks(others)]
        stream = self.trunk.run(windows, hooks, last, self.positional_resize)  # c, Xr
        return sum(self._dec(path) for path in (stream, *fused))

    def _dec(self, path: Tensor) -> Tensor:
        """Dec(Z, c) of 2025-12: class token and patches (B, 1 + N, C) to patches (B, N, C)."""
        cls, patches = path[:, :1], path[:, 1:]
        return correlate(self.last_block, patches, self.correlation) + self.res_cls * cls

    def similarity_attention(self, g_pre: Tensor) -> Tensor:
        return masked_similarity_attention(cut_below(g_pre, self.beta))

    def decode_mid(self, tokens: Tensor, similarity: Tensor) -> Tensor:
        return correlate(self.last_block, tokens, "", similarity)
