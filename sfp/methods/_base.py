"""Methods around the last block of another method: which one, and its attention taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch.nn.functional as F
from torch import Tensor

from sfp.errors import SFPError
from sfp.methods import METHODS, Method, build_method
from sfp.methods.naclip import gaussian
from sfp.options import parse_spec

# the logits of each softmax of the last attention, by the letters of both factors
LOGITS = {"CLIP": ["qk"], "SCLIP": ["qq", "kk"], "ClearCLIP": ["qq"], "NACLIP": ["kk"]}


def build_base(method: Method, bases: Sequence[str], what: str) -> Method:
    """The method that ``method.base`` names, a name or ``dict(type=NAME, OPTION=VALUE)``.

    It is not purified itself: windows go through the trunk with the options of ``method``.

    Args:
        bases: the names that can be one.
        what: what these have and others don't, for the error.

    Raises:
        SFPError: no method, one that can't be a base, or an option that it doesn't take.
    """
    name, options = parse_spec(method.base)
    METHODS.get(name)
    if name not in bases:
        raise SFPError(
            f"base of {method.name} is {name}, which {what} is not known of; give one of"
            f" {', '.join(bases)}."
        )
    shared = {field.name for field in fields(Method)}
    for option in shared & set(options):
        raise SFPError(
            f"base of {method.name} sets {option} of {name}, but windows are encoded by"
            f" {method.name}; give it {option} instead."
        )
    return build_method(name, method.clip, purify=False, **options)


def last_logits(base: Method, q: Tensor, k: Tensor) -> list[Tensor]:
    """U U'^T / sqrt(d_h) of each softmax of a base's last attention, (B, heads, T, T) float32."""
    parts = {"q": q.float(), "k": k.float()}
    scale = q.shape[-1] ** -0.5
    return [parts[a] * scale @ parts[b].transpose(-2, -1) for a, b in LOGITS[base.name]]


def summed_softmax(base: Method, logits: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """The base's map of its logits, (B, heads, T, T): with NACLIP's Gaussian, SCLIP's rows sum to
    2.
    """
    if base.name == "NACLIP":
        omega = gaussian(grid, base.sigma, base.trunk.prefix).to(logits[0])
        appended = logits[0].shape[-1] - len(omega)
        omega = F.pad(omega, (0, appended, 0, appended))
        logits = [own + omega for own in logits]
    return sum(own.softmax(-1) for own in logits)


def finish(base: Method, tokens: Tensor, mixed: Tensor) -> Tensor:
    """The end of the base's last block: W_o concat(.) + b_o, residual and FFN where it has them.

    Args:
        tokens: X^{L-1}, (B, T, C).
        mixed: A V per head, (B, heads, T, d_h).
    """
    block = base.last_block
    mixed = block.project(mixed)
    if not base.changes.residual:
        return mixed
    tokens = tokens + mixed
    return tokens + block.mlp(tokens)
