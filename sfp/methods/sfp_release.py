"""SFP-release: what SFP's released code computes (Kimsure/SFP, snapshot 2026-04; methods.md 1.12).

It differs from the paper: outliers are repaired after block L-1 alone, and HAI is absent. It is SC-CLIP with another
detector, an added q-q term, the similarity cut before it serves as attention, and a second stream mixed by it alone.
"""

from __future__ import annotations

from torch import Tensor

from sfp.errors import SFPError
from sfp.methods.method import METHODS, Card
from sfp.methods.parts import correlate, cut_below, masked_similarity_attention
from sfp.methods.sc_clip import PUBLISHED, SCCLIP


@METHODS.register("SFP-release")
class SFPRelease(SCCLIP):
    """Dec(Z) = W_o concat(1/3 [softmax(K K^T / s) + softmax(Q Q^T / s) + softmax(B)] V) + b_o, s = sqrt(d_h).

    B is made of the similarity after the cut; M is mixed by softmax(B) alone. The options are SC-CLIP's; the SOM factor
    is 5 times ``res_cls``. The layers are the same for every depth that has them, as in the code.
    """

    res_cls: float = 0.3
    correlation: str = "kq"

    card = Card(
        "Kimsure/SFP, code of 2026",
        "q-q + k-k + similarity of a middle layer",
        "last block's, of two streams",
        "L; reads 4..10",
        False,
        False,
    )
    own_pm = "SOM"

    def prepare(self) -> None:
        super().prepare()
        if self.fused and self.fusion == "pass" and not self.enhance:
            raise SFPError("SFP-release mixes its second stream by softmax(B) alone; with enhance=False give fuse_layers=[], too.")
        som = dict(cls_factor=5 * self.res_cls, max_outliers=10)
        self.own_detector_options = {"SOM": som, "L2": dict(topk=10), "LOF": dict(k=30, contamination=0.05)}

    def published_constants(self) -> dict | None:
        return PUBLISHED[12, 16] if self.trunk.layers >= 12 else None

    def similarity_attention(self, g_pre: Tensor) -> Tensor:
        return masked_similarity_attention(cut_below(g_pre, self.beta))

    def decode_mid(self, tokens: Tensor, similarity: Tensor) -> Tensor:
        return correlate(self.last_block, tokens, "", similarity)
