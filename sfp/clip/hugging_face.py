"""Weights in Hugging Face's layouts, renamed to open_clip's.

``CLIPModel`` becomes OpenAI's layout, ``SiglipModel`` and ``Siglip2Model`` (whose patches are a
linear map) open_clip's CLIP with timm's SigLIP tower. Sizes are read from shapes; a ``config.json``
beside the weights gives heads and activation, and must not disagree with the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfp.errors import SFPError

_HEADS = {1152: 72, 1536: 96}  # head width of SigLIP's so400m and giant-opt; 64 in all others
# vocabulary of a SigLIP to its tokenizer, as open_clip names them
_TOKENIZERS = {
    32000: "timm/ViT-B-16-SigLIP",
    250000: "timm/ViT-B-16-SigLIP-i18n-256",
    256000: "timm/ViT-B-16-SigLIP2",
}
_BLOCK = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_TIMM_BLOCK = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "head.weight": "text_projection.weight",  # SigLIP's
    "head.bias": "text_projection.bias",
}
_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",  # Hugging Face's spelling
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
_SIGLIP = {
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
    "embeddings.position_embedding.weight": "pos_embed",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
    "head.probe": "attn_pool.latent",
    "head.attention.out_proj.weight": "attn_pool.proj.weight",
    "head.attention.out_proj.bias": "attn_pool.proj.bias",
    "head.layernorm.weight": "attn_pool.norm.weight",
    "head.layernorm.bias": "attn_pool.norm.bias",
    **{
        f"head.mlp.{layer}.{kind}": f"attn_pool.mlp.{layer}.{kind}"
        for layer in ("fc1", "fc2")
        for kind in ("weight", "bias")
    },
}


def is_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are in one of Hugging Face's layouts."""
    return any(key.startswith(("vision_model.", "text_model.")) for key in weights)


def renamed(
    weights: Mapping[str, Tensor], source: str, config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Weights in open_clip's layout, and what is known of them, as arguments of ``Checkpoint``.

    Args:
        config: the contents of config.json, None without one.

    Raises:
        SFPError: neither a ``CLIPModel`` nor a ``SiglipModel``, or a config that disagrees with the
            weights.
    """
    siglip = "vision_model.head.probe" in weights
    vision, text = (_towers(config).get(name, {}) for name in ("vision", "text"))
    _require_norms(vision, text, 1e-6 if siglip else 1e-5, source)
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        tower, _, rest = key.partition(".")
        if key.endswith("position_ids"):
            continue
        if tower == "vision_model":
            prefix = "visual.trunk." if siglip else "visual."
            out[prefix + _renamed_key(rest, siglip)] = value
        elif tower == "text_model":
            out[("text." if siglip else "") + _renamed_key(rest, False, _TEXT)] = value
        elif key == "visual_projection.weight":
            out["visual.proj"] = value.T
        elif key == "text_projection.weight":
            out["text_projection"] = value.T
        else:
            out[key] = value
    out = _joined(out, source)
    missing = [key for key in (_NEEDED_SIGLIP if siglip else _NEEDED) if key not in out]
    if missing:
        raise SFPError(
            f"{source} is in Hugging Face's layout, but no CLIPModel, SiglipModel or Siglip2Model"
            f" (it has nothing for {missing[0]}); give the weights of such a model."
        )
    if siglip:
        return _siglip(out, source, vision, text)
    sizes = dict(
        hidden_size=out["visual.conv1.weight"].shape[0],
        patch_size=out["visual.conv1.weight"].shape[-1],
    )
    _require_same(vision, {**sizes, **_block_sizes(out, "visual.transformer.", "c_fc")}, source)
    _require_same(text, _text_sizes(out, ""), source)
    width, heads = sizes["hidden_size"], vision.get("num_attention_heads")
    activation = {"quick_gelu": True, "gelu": False}.get(_activation(vision, text, source))
    return dict(
        weights=out,
        quick_gelu=activation,
        head_width=width // heads if heads else None,
        text_heads=text.get("num_attention_heads"),
    )


_NEEDED = ("visual.conv1.weight", "visual.proj", "token_embedding.weight", "positional_embedding",
           "visual.transformer.resblocks.0.mlp.c_fc.weight", "ln_final.weight",
           "transformer.resblocks.0.mlp.c_fc.weight")  # fmt: skip
_NEEDED_SIGLIP = ("visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed",
                  "visual.trunk.blocks.0.mlp.fc1.weight", "text.token_embedding.weight",
                  "text.positional_embedding", "text.transformer.resblocks.0.mlp.c_fc.weight",
                  "text.text_projection.weight", "logit_bias")  # fmt: skip


def _towers(config: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The parts of a config.json that say something of each tower."""
    config = config or {}
    return {name: config.get(f"{name}_config") or {} for name in ("vision", "text")}


def _renamed_key(rest: str, timm: bool, names: Mapping[str, str] | None = None) -> str:
    """The key of a tower's weight without the tower's prefix; Q, K and V keep their own names."""
    names = names or (_SIGLIP if timm else _VISION)
    block = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", rest)
    if block:
        number, part, kind = block.groups()
        part = (_TIMM_BLOCK if timm else _BLOCK).get(part, part)
        folder = "blocks" if timm else "transformer.resblocks"
        return f"{folder}.{number}.{part}.{kind}"
    return names.get(rest, rest)


def _joined(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Q, K and V as one matrix; of SigLIP's pool, K and V."""
    out = {key: value for key, value in weights.items() if "self_attn." not in key}
    for key in [key for key in weights if "self_attn.q_proj." in key]:
        parts = [weights.get(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        if any(part is None for part in parts):
            raise SFPError(f"{source} has {key}, but not its keys and values; get a sound copy.")
        kind, start = key.rpartition(".")[2], key.partition("self_attn.")[0]
        name = f"attn.qkv.{kind}" if "visual.trunk." in start else f"attn.in_proj_{kind}"
        out[start + name] = torch.cat(parts)
    for kind in ("weight", "bias"):
        joint = out.pop(f"visual.trunk.head.attention.in_proj_{kind}", None)
        if joint is not None:
            third = len(joint) // 3
            out[f"visual.trunk.attn_pool.q.{kind}"] = joint[:third]
            out[f"visual.trunk.attn_pool.kv.{kind}"] = joint[third:]
    return out


def _siglip(
    out: dict[str, Tensor], source: str, vision: Mapping[str, Any], text: Mapping[str, Any]
) -> dict[str, Any]:
    """A SigLIP's weights with open_clip's config of their sizes."""
    patches = out["visual.trunk.patch_embed.proj.weight"]
    if patches.ndim == 2:  # Siglip2Model: pixels of a patch in rows, columns, colours
        side = round((patches.shape[1] / 3) ** 0.5)
        patches = patches.reshape(len(patches), side, side, 3).permute(0, 3, 1, 2).contiguous()
        out["visual.trunk.patch_embed.proj.weight"] = patches
    positions = out["visual.trunk.pos_embed"]
    width, patch, grid = patches.shape[0], patches.shape[-1], round(len(positions) ** 0.5)
    if grid * grid != len(positions):
        raise SFPError(
            f"{source} was trained on a grid of {len(positions)} patches that is not square; "
            "give weights with a square one."
        )
    out["visual.trunk.pos_embed"] = positions[None]
    images, words = _block_sizes(out, "visual.trunk.", "fc1"), _text_sizes(out, "text.")
    sizes = dict(hidden_size=width, patch_size=patch, **images)
    if "num_patches" not in vision:
        sizes["image_size"] = grid * patch
    _require_same(vision, sizes, source)
    _require_same(text, words, source)
    activation = _activation(vision, text, source) or "gelu_pytorch_tanh"  # the layout's own
    if activation not in ("gelu_pytorch_tanh", "gelu"):
        raise SFPError(
            f"{source} has the activation {activation!r}, which no SigLIP has; put its config.json"
            " right."
        )
    tanh = activation == "gelu_pytorch_tanh"

    def heads(own: Mapping[str, Any], size: int) -> int:
        return own.get("num_attention_heads") or max(1, size // _HEADS.get(size, 64))

    text_width = words["hidden_size"]
    config = dict(
        embed_dim=width,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=dict(
            image_size=grid * patch,
            timm_model_name="vit_base_patch16_siglip_224",
            timm_pool="map",
            timm_proj="none",
            timm_kwargs=dict(
                img_size=grid * patch,
                patch_size=patch,
                embed_dim=width,
                depth=images["num_hidden_layers"],
                num_heads=heads(vision, width),
                mlp_ratio=(images["intermediate_size"] + 0.5) / width,
                act_layer="gelu_tanh" if tanh else "gelu",
            ),
        ),
        text_cfg=dict(
            context_length=words["max_position_embeddings"],
            vocab_size=words["vocab_size"],
            width=text_width,
            heads=heads(text, text_width),
            layers=words["num_hidden_layers"],
            mlp_ratio=(words["intermediate_size"] + 0.5) / text_width,
            hf_tokenizer_name=_TOKENIZERS.get(words["vocab_size"], source),
            tokenizer_kwargs={"clean": "canonicalize"},
            no_causal_mask=True,
            proj_bias=True,
            pool_type="last",
            norm_kwargs={"eps": 1e-6},
            act_kwargs={"approximate": "tanh" if tanh else "none"},
        ),
    )
    return dict(weights=out, quick_gelu=False, config=config)


def _block_sizes(out: Mapping[str, Tensor], start: str, first: str) -> dict[str, int]:
    """Depth and hidden width of a tower, under Hugging Face's names."""
    blocks = "blocks" if start.endswith("trunk.") else "resblocks"
    key = f"{start}{blocks}."
    numbers = {name[len(key) :].split(".")[0] for name in out if name.startswith(key)}
    hidden = out[f"{key}0.mlp.{first}.weight"].shape[0]
    return dict(num_hidden_layers=len(numbers), intermediate_size=hidden)


def _text_sizes(out: Mapping[str, Tensor], start: str) -> dict[str, int]:
    """Sizes of a text tower, under Hugging Face's names."""
    vocabulary, width = out[f"{start}token_embedding.weight"].shape
    return dict(
        vocab_size=vocabulary,
        hidden_size=width,
        max_position_embeddings=len(out[f"{start}positional_embedding"]),
        **_block_sizes(out, f"{start}transformer.", "c_fc"),
    )


def _require_same(given: Mapping[str, Any], found: Mapping[str, int], source: str) -> None:
    """Raises SFPError where a config.json disagrees with the weights' shapes."""
    for key, size in found.items():
        if key in given and given[key] != size:
            raise SFPError(
                f"The config.json of {source} has {key}={given[key]!r}, but its weights have"
                f" {size}; get both from one place."
            )


def _activation(vision: Mapping[str, Any], text: Mapping[str, Any], source: str) -> str | None:
    """The activation of both towers; None where no config says it."""
    named = {own["hidden_act"] for own in (vision, text) if "hidden_act" in own}
    if len(named) > 1:
        raise SFPError(
            f"The config.json of {source} has the activations {' and '.join(sorted(named))} in its"
            " two towers; open_clip's CLIP has one."
        )
    return next(iter(named), None)


def _require_norms(vision: Mapping, text: Mapping, usual: float, source: str) -> None:
    for own in (vision, text):
        if own.get("layer_norm_eps", usual) != usual:
            raise SFPError(
                f"The config.json of {source} has layer_norm_eps={own['layer_norm_eps']}, and"
                f" open_clip's model has {usual}; such a model is not supported."
            )
