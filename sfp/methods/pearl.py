"""PEARL: keys turned towards queries before the last attention (CVPR 2026; PGSmall/PEARL).

This is its Procrustes alignment; its second part, text-aware Laplacian propagation of the scores,
is the refiner TLP: ``refine=["TLP"]``, which configs/methods/PEARL.py has on.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from sfp.clip.kernels import attend
from sfp.methods import METHODS, Changes, Method
from sfp.options import Count, Range


@METHODS.register("PEARL")
class PEARL(Method):
    """A = softmax(Q (K R)^T / sqrt(d_h) + alpha_kk K' K'^T / sqrt(d_h)), R of K'^T Q'.

    Q' and K' are Q and K less their means, weighted by the norm of Q without the class token. R is
    the polar factor of K'^T Q', per head and image; neither residual nor FFN.

    Args:
        alpha_kk: weight of the k-k term; 0.3 on ADE20K and Cityscapes.
        solver: "polar", a few Newton-Schulz steps, which leave small singular values small; "svd",
            the exact rotation.
        polar_iterations: steps of "polar".
        full_block: keep the last block's residual and FFN.
    """

    alpha_kk: Annotated[float, Range(0)] = 0.08
    solver: Literal["polar", "svd"] = "polar"
    polar_iterations: Count = 5
    full_block: bool = False

    changes = Changes("CVPR 2026", attention="q-k aligned + k-k", residual=False, ffn=False)

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.stream(windows), self.last_block
        q, k, v = block.qkv(block.normed(stream))
        q, k = q.float(), k.float()
        rows = self.patch_rows(windows)
        centred, rotation = self.align(q, k, rows)
        # both terms as one product
        root = self.alpha_kk**0.5 * centred
        left, right = torch.cat([q, root], -1), torch.cat([k @ rotation, root], -1)
        mixed = block.project(attend(left, right, v.float(), scale=q.shape[-1] ** -0.5))
        if self.full_block:
            stream = stream + mixed
            mixed = stream + block.mlp(stream)
        return mixed[:, rows]

    def align(self, q: Tensor, k: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """K' (B, heads, T, d_h) and R (B, heads, d_h, d_h) of Q and K, whose patches are ``rows``;
        float32.
        """
        weights = q[:, :, rows].norm(dim=-1, keepdim=True)
        weights = weights / (weights.sum(2, keepdim=True) + 1e-6)
        q = q - (weights * q[:, :, rows]).sum(2, keepdim=True)
        k = k - (weights * k[:, :, rows]).sum(2, keepdim=True)
        cross = k.transpose(-2, -1) @ q
        if self.solver == "svd":
            u, _, v = torch.linalg.svd(cross)
            return k, u @ v
        return k, polar_factor(cross, self.polar_iterations)


def polar_factor(matrix: Tensor, iterations: int) -> Tensor:
    """M (M^T M)^{-1/2} of matrices (..., d, d), by Newton-Schulz steps from a Frobenius norm of 1.

    So few steps do not converge where singular values are small: those stay small.
    """
    gram = matrix.transpose(-2, -1) @ matrix
    norm = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1e-6)
    one = torch.eye(matrix.shape[-1], device=matrix.device)
    y, z = gram / norm + 1e-6 * one, one
    for _ in range(iterations):
        step = (3 * one - z @ y) / 2
        y, z = y @ step, step @ z
    return matrix @ z / norm.sqrt()
