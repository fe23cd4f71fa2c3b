"""Our trunk beside open_clip's own forward of the same network, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.trunk import Hook, LayerState
from sfp.methods import build_method
from sfp.verification.findings import Finding, failed, passed
from sfp.verification.pictures import batch_of_windows
from sfp.verification.session import Session

_NEAR = 1e-5  # of unit vectors in float32
_NEAR_STREAM = 2e-4  # of tokens, beside their length
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "QuickGELU": lambda x: x * torch.sigmoid(1.702 * x),
    "plain GELU": F.gelu,
    "GELU by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "SiLU": F.silu,
    "ReLU": F.relu,
}
Stages = dict[tuple[int, str], Tensor]  # (block, "attention" or "MLP") or (0, "embedding")


def against_open_clip(session: Session, device: str = "cpu") -> Finding:
    """The whole image's embedding and plain CLIP's patch features, in fp32."""
    clip = session.clip(device, "fp32")
    windows = batch_of_windows(clip, session.photograph.pixels, 2).to(clip.device)
    differences = {"image embedding": _embedding_difference(clip, windows)}
    if not isinstance(clip.model.visual, VisionTransformer):
        words = f"image embeddings differ by {differences['image embedding']:.1e}"
        kind = type(clip.model.visual).__name__
        if differences["image embedding"] < _NEAR:
            return passed(f"{words}; patches are not compared in a {kind}", **differences)
        return failed(f"{words}; where is not known in a {kind}", **differences)
    theirs, ours = stages_of_open_clip(clip, windows), stages_of_trunk(clip, windows)
    own = l2_normalise(build_method("CLIP", clip)(windows)).flatten(1, 2)
    expected = l2_normalise(_read_out(clip.model.visual, theirs[clip.trunk.layers, "MLP"][:, 1:]))
    differences["patch features"] = float((own - expected).abs().max())
    if max(differences.values()) < _NEAR:
        shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        return passed(f"open_clip's own, largest differences: {shown}", **differences)
    off = max(differences, key=differences.get)
    where = first_difference(clip, ours, theirs)
    words = f"{off} part from open_clip's by {differences[off]:.2g}: {where}"
    if device != "cpu" and (hint := _reduced_precision()):
        words += f"; {hint}"
    return failed(words, **differences)


@torch.inference_mode()
def _embedding_difference(clip: FrozenCLIP, windows: Tensor) -> float:
    theirs = clip.model.encode_image(windows)
    return float((l2_normalise(clip.encode_image(windows)) - l2_normalise(theirs)).abs().max())


def _reduced_precision() -> str:
    reduced = [
        name
        for name, on in (
            ("torch.backends.cuda.matmul.allow_tf32", torch.backends.cuda.matmul.allow_tf32),
            ("torch.backends.cudnn.allow_tf32", torch.backends.cudnn.allow_tf32),
        )
        if on
    ]
    return f"{' and '.join(reduced)} are on, which rounds to 10 bits" if reduced else ""


# ------------------------------------------------------------------------------ the two streams


@contextlib.contextmanager
def hooked(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def stages_of_open_clip(clip: FrozenCLIP, windows: Tensor) -> Stages:
    """The stream of open_clip's own forward, (B, T, C): what goes into block 1, and each block's
    after its attention and after its MLP.
    """
    visual, found = clip.model.visual, {}
    batch_first = visual.transformer.batch_first

    def keep(key: tuple[int, str], tokens: Tensor) -> None:
        found[key] = (tokens if batch_first else tokens.transpose(0, 1)).float()

    handles = []
    for number, block in enumerate(visual.transformer.resblocks, 1):
        if number == 1:
            handles.append(
                block.register_forward_pre_hook(
                    lambda _, args, kwargs: keep(
                        (0, "embedding"), args[0] if args else kwargs["q_x"]
                    ),
                    with_kwargs=True,
                )
            )
        handles.append(
            block.ln_2.register_forward_pre_hook(
                lambda _, args, number=number: keep((number, "attention"), args[0])
            )
        )
        handles.append(
            block.register_forward_hook(
                lambda _, args, out, number=number: keep((number, "MLP"), out)
            )
        )
    with hooked(handles):
        clip.model.encode_image(windows)
    return found


@torch.inference_mode()
def stages_of_trunk(clip: FrozenCLIP, windows: Tensor) -> Stages:
    """The same of our trunk."""
    found: Stages = {}

    def keep(kind: str) -> Callable[[LayerState], None]:
        def function(state: LayerState) -> None:
            found[state.layer, kind] = state.tokens.float()
            if state.layer == 1 and kind == "attention":
                found[0, "embedding"] = state.inputs.float()

        return function

    every = range(1, clip.trunk.layers + 1)
    clip.trunk.run(
        windows,
        [Hook(keep("attention"), every, point="attention"), Hook(keep("MLP"), every)],
    )
    return found


def relative(here: Tensor, there: Tensor) -> float:
    """The largest distance of a token from its counterpart, beside the tokens' mean length."""
    length = there.norm(dim=-1).mean().clamp(min=1e-12)
    return float((here - there).norm(dim=-1).max() / length)


@torch.inference_mode()
def _read_out(visual: nn.Module, tokens: Tensor) -> Tensor:
    return F.linear(visual.ln_post(tokens), visual.proj.T)


# ------------------------------------------------------------------------------ where they part


@torch.inference_mode()
def first_difference(clip: FrozenCLIP, ours: Stages, theirs: Stages) -> str:
    """Where the streams first part, and of what."""
    order = [(0, "embedding")]
    for layer in range(1, clip.trunk.layers + 1):
        order += [(layer, "attention"), (layer, "MLP")]
    for place, (layer, kind) in enumerate(order):
        off = relative(ours[layer, kind], theirs[layer, kind])
        if off <= _NEAR_STREAM:
            continue
        if layer == 0:
            return (
                f"already before block 1, by {off:.2g}: patch embedding, class token, positions or"
                " the norm before the blocks"
            )
        block = clip.model.visual.transformer.resblocks[layer - 1]
        before = ours[order[place - 1]]
        cause = _of_mlp if kind == "MLP" else _of_attention
        why = cause(block, before, ours[layer, kind])
        return f"first in block {layer}'s {kind}, by {off:.2g}: {why}"
    return "in no block, so after the last one: norm, projection, or the order of the patches"


def _of_mlp(block: nn.Module, before: Tensor, after: Tensor) -> str:
    """Which activation makes our MLP's output of its input."""
    inner = block.mlp.c_fc(block.ln_2(before))
    added = after - before
    fits = {
        name: relative(added, block.mlp.c_proj(function(inner)))
        for name, function in _ACTIVATIONS.items()
    }
    best = min(fits, key=fits.get)
    theirs = min(
        _ACTIVATIONS,
        key=lambda name: float((_ACTIVATIONS[name](inner) - block.mlp.gelu(inner)).abs().max()),
    )
    if fits[best] < 1e-2 and best != theirs:
        return f"the activation, ours is {best} and open_clip's {theirs}"
    return "the norm or one of its two maps"


def _of_attention(block: nn.Module, before: Tensor, after: Tensor) -> str:
    """Which mistake makes our attention's output of its input."""
    from sfp.verification.formulas import mixed, of_heads, softmaxed

    q, k, v = of_heads(block, before)
    added, usual = after - before, softmaxed(q, k)
    guesses = {
        "the attention is transposed": usual.mT,
        "queries and keys are each other's": softmaxed(k, q),
        "the scale is missing": softmaxed(q * q.shape[-1] ** 0.5, k),
    }
    for name, weights in guesses.items():
        if relative(added, mixed(block, weights, v)) < 1e-2:
            return name
    return "its norm, its maps or the attention itself"
