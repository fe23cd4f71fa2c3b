"""timm's ViTs: DINO, DINOv2 and others."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfp.backbones._backbone import Backbone
from sfp.clip.clip import FrozenCLIP
from sfp.clip.positions import resize_positions
from sfp.clip.registers import Registers
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.network import cached_hub_file, hub_file, require_published

Reads = Literal["tokens", "queries", "keys", "values", "queries+keys"]
Positions = Literal["auto", "timm", "scale"]
_EXAMPLE = "vit_base_patch8_224.dino"
# the register neurons of DINOv2's ViT-L/14 that nickjiang2378/test-time-registers ships
DINOV2_L14 = {
    18: [884, 133, 1427, 3464, 2373, 2436, 841, 3574, 2129, 3355, 4047, 3341, 1330, 4031, 844,
         944, 464],
    17: [2301, 3576, 1940, 3463, 1244, 407, 3152, 2517, 3465],
    16: [1714, 3507, 2492, 2680, 131, 720, 3499, 3062, 2625],
    15: [2110, 1510, 1082, 2711, 2464, 147, 543, 581],
    14: [2400],
    13: [3168],
}  # fmt: skip


class TimmViT(Backbone):
    """What a timm ViT has in one of its blocks, class and register tokens dropped.

    Windows come normalised for CLIP and go in with the model's own mean and deviation.

    Args:
        model: the network.
        clip: whose windows it gets.
        reads: the block's output "tokens", after the final norm where the block is the last; or
            its "queries", "keys" or "values" with biases, or "queries+keys"; all heads joined.
        layer: which block, 1-based; the last if None.
        positions: for grids other than the native one "timm" resizes its positional embedding
            bicubic with antialiasing, "scale" as DINO's own code and plain DINOv2's do
            (``resize_positions``); "auto" is "scale" where the model allows it.

    Raises:
        SFPError: no such block, or a model whose positions can't be resized by "scale".
    """

    def __init__(
        self,
        model: nn.Module,
        clip: FrozenCLIP,
        reads: Reads = "tokens",
        layer: int | None = None,
        positions: Positions = "timm",
    ):
        super().__init__()
        can_scale = _is_plain(model)
        if positions == "auto":
            positions = "scale" if can_scale else "timm"
        if positions == "scale" and not can_scale:
            raise SFPError(
                "positions='scale' is for ViTs with a class token, no registers and one positional"
                f" embedding for each patch, such as {_EXAMPLE}; give positions='timm'."
            )
        self.model, self.reads, self.positions = model, reads, positions
        self.layer = len(model.blocks) if layer is None else layer
        first = 2 if positions == "timm" and reads != "tokens" else 1
        if not first <= self.layer <= len(model.blocks):
            raise SFPError(
                f"The {reads} of layer {layer} of a second model of {len(model.blocks)} blocks are"
                f" asked for; give a layer from {first} to {len(model.blocks)}."
            )
        self.heads = model.blocks[-1].attn.num_heads
        (self.patch, _) = model.patch_embed.patch_size
        given = (torch.tensor(v).view(3, 1, 1) for v in (clip.pixel_mean, clip.pixel_std))
        config = model.pretrained_cfg
        wanted = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
        (mean, std), (new_mean, new_std) = given, wanted
        self.register_buffer("factor", std / new_std, persistent=False)
        self.register_buffer("offset", (mean - new_mean) / new_std, persistent=False)

    def encode(self, windows: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        inputs = (windows * self.factor + self.offset).to(dtype)
        embed = self.model.patch_embed
        grid = embed.dynamic_feat_size(windows.shape[-2:])
        # remainders smaller than a patch are dropped, as CLIP's trunk does; timm refuses them
        height, width = (n * p for n, p in zip(grid, embed.patch_size, strict=True))
        inputs = inputs[..., :height, :width]
        last = self.layer == len(self.model.blocks)
        if self.reads == "tokens":
            tokens = self._stream(inputs, grid, self.layer)
            tokens = self.model.norm(tokens) if last else tokens
        else:
            block = self.model.blocks[self.layer - 1]
            tokens = self._stream(inputs, grid, self.layer - 1)
            tokens = _project(block.attn, block.norm1(tokens), self.reads)
        return tokens.transpose(1, 2).unflatten(2, tuple(grid))

    def _stream(self, inputs: Tensor, grid: Sequence[int], last: int) -> Tensor:
        """The patches' rows of the stream after so many blocks, (B, N, C)."""
        model, first = self.model, self.model.num_prefix_tokens
        if self.positions == "timm" and last:
            (tokens,) = model.forward_intermediates(
                inputs, [last - 1], stop_early=True, output_fmt="NLC", intermediates_only=True
            )
            return tokens[:, : grid[0] * grid[1]]
        tokens = model.patch_embed(inputs).flatten(1, 2)
        cls = model.cls_token.expand(len(tokens), -1, -1)
        native = tuple(model.patch_embed.grid_size)
        places = resize_positions(model.pos_embed[0], native, tuple(grid), "scale")
        tokens = model.norm_pre(torch.cat([cls, tokens], 1) + places.to(tokens.dtype))
        for block in model.blocks[:last]:
            tokens = block(tokens)
        return tokens[:, first : first + grid[0] * grid[1]]

    @staticmethod
    def cached_file(name: str) -> Path | None:
        """The weights of a timm model in the hub's cache."""
        repository, files = _published(name)
        kept = [cached_hub_file(repository, file) for file in files]
        return next(filter(None, kept), None)

    def append_registers(self, given: Mapping[str, Any]) -> None:
        """Run with test-time registers from now on: zeros after the patches, before the blocks.

        Args:
            given: arguments of ``Registers`` with their neurons, ``DINOV2_L14`` for example.

        Raises:
            SFPError: what ``Registers`` refuses, or a model with trained registers.
        """
        model, blocks = self.model, self.model.blocks
        if model.num_prefix_tokens != 1:
            raise SFPError(
                f"{self.name} has {model.num_prefix_tokens - 1} trained registers; test-time ones"
                " are for models without."
            )
        registers = Registers.of_blocks(given, len(blocks), blocks[0].mlp.fc1.out_features)

        def append(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (F.pad(inputs[0], (0, 0, 0, registers.count)),)

        def edit(units: Sequence[int]) -> Callable[..., Tensor]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], hidden: Tensor) -> Tensor:
                patches = slice(1, hidden.shape[1] - registers.count)
                return registers.edit(hidden, units, patches)

            return hook

        model.norm_pre.register_forward_pre_hook(append)
        for layer, units in registers.neurons.items():
            blocks[layer - 1].mlp.act.register_forward_hook(edit(units))

    @classmethod
    def load(
        cls, name: str, clip: FrozenCLIP, option: str, weights: str | None, **reading: Any
    ) -> TimmViT:
        """See ``load_backbone``; ``reading`` are ``reads``, ``layer``, ``positions``."""
        import timm

        base = name.split(".")[0]
        if not timm.is_model(base):
            known = timm.list_models("vit_*", pretrained=True)
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4) or [_EXAMPLE]
            raise SFPError(
                f"timm has no model {name!r}; give {option} a ViT's name such as {close[0]},"
                " or 'colour'."
            )
        options = dict(num_classes=0, dynamic_img_size=True)
        try:
            with torch.device("meta"):  # its shape alone
                timm.create_model(base, **options)
        except TypeError as error:
            raise SFPError(
                f"timm's {name} takes no windows of other sizes;"
                f" give {option} a plain ViT such as {_EXAMPLE}."
            ) from error
        file = Path(weights).expanduser() if weights else _from_the_hub(name, option)
        if not file.is_file():
            raise SFPError(
                f"There is no file {weights} ({option}_weights); give the path of {name}'s weights."
            )
        own = file.suffix == ".npz"  # the model's own reader, for JAX's files alone
        options["pretrained_cfg_overlay"] = dict(file=str(file), custom_load=own)
        try:
            model = timm.create_model(name, pretrained=True, **options)
        except Exception as error:  # the hub's, safetensors' and torch's errors have no common base
            refuse_want_of_memory(error, f"loading timm's {name}")
            reason = str(error).strip().split("\n")[0][:160]
            raise SFPError(
                f"The weights of timm's {name} can't be had ({reason}); bring the file and pass its"
                f" path as {option}_weights, or give {option}='colour'."
            ) from error
        return cls(model.to(clip.trunk.dtype), clip, **reading)


def _is_plain(model: nn.Module) -> bool:
    """Whether a model has a class token, no registers and one positional embedding for each patch,
    as DINO has, and no other positions.
    """
    from timm.models.vision_transformer import VisionTransformer

    embedding = getattr(model, "pos_embed", None)
    if not isinstance(model, VisionTransformer) or embedding is None:
        return False
    return embedding.shape[1] == model.patch_embed.num_patches + 1 and model.num_prefix_tokens == 1


def _project(attention: nn.Module, tokens: Tensor, reads: str) -> Tensor:
    """Queries, keys or values (B, N, C) of a timm attention's inputs, biases included, before any
    norm or rotation of them.
    """
    names = [name[0] for name in reads.split("+") if name]  # q, k, v
    if attention.qkv is None:
        found = [getattr(attention, f"{name}_proj")(tokens) for name in ("q", "k", "v")]
    else:
        found = list(F.linear(tokens, attention.qkv.weight, _bias(attention)).chunk(3, -1))
    own = [found["qkv".index(name)] for name in names]
    return own[0] if len(own) == 1 else own[0] + own[1]


def _bias(attention: nn.Module) -> Tensor | None:
    """The bias of queries, keys and values, which BEiT and EVA keep apart."""
    if getattr(attention, "q_bias", None) is None:
        return attention.qkv.bias
    return torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])


def _published(name: str) -> tuple[str, list[str]]:
    """The hub's repository of a timm model's weights, empty where timm knows none, and which files
    it may have, the best first.
    """
    from timm.models import get_pretrained_cfg

    try:
        entry = get_pretrained_cfg(name)
    except RuntimeError:
        return "", []
    if entry is None or not entry.hf_hub_id:
        return "", []
    repository = entry.hf_hub_id if "/" in entry.hf_hub_id else f"timm/{name}"
    own = [entry.hf_hub_filename] if entry.hf_hub_filename else []
    return repository, [*own, "model.safetensors", "pytorch_model.bin"]


def _from_the_hub(name: str, option: str) -> Path:
    """The weights of a timm model, from the hub or its cache.

    Raises:
        SFPError: they can't be had, or are not the published ones.
    """
    repository, files = _published(name)
    if not repository:
        raise SFPError(
            f"timm has no weights {name!r}; give {option} a name with one of its tags,"
            f" such as {_EXAMPLE}."
        )
    what, advice = (
        f"The weights of timm's {name}",
        (
            f"bring {files[0]} of {repository} on Hugging Face from elsewhere and pass its path as"
            f" {option}_weights, or give {option}='colour'"
        ),
    )
    found = (hub_file(repository, file, what, advice) for file in files)
    path = TimmViT.cached_file(name) or next(filter(None, found), None)
    if path is None:
        raise SFPError(f"{repository} on Hugging Face has no {' or '.join(files)}; {advice}.")
    require_published(path)
    return path
