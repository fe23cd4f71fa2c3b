"""Tiny CLIPs of every family of towers, made-up weights, in the folders that ``load_clip`` takes.

Blocks are 7 of width 64 on 4x4 patches; what a timm model fixes stays as it is (ViTamin's 384).
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfp.clip import load_clip
from sfp.clip.clip import FrozenCLIP
from sfp.clip.models import build_network

SIDE, PATCH, BLOCKS, WIDTH, EMBED = 64, 16, 7, 64, 32
TEXT = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)
SIZES = dict(img_size=SIDE, embed_dim=WIDTH, depth=BLOCKS, num_heads=4)


def _own(**more: Any) -> dict[str, Any]:
    """open_clip's own ViT."""
    vision = dict(image_size=SIDE, layers=BLOCKS, width=WIDTH, patch_size=PATCH, head_width=16)
    return dict(embed_dim=EMBED, vision_cfg={**vision, **more}, text_cfg=dict(TEXT))


def _timm(name: str, pool: str, proj: str | None, **more: Any) -> dict[str, Any]:
    """timm's ViT as open_clip wraps it."""
    sizes = {**SIZES, **more}
    embed = sizes["embed_dim"] if proj == "none" else EMBED
    vision = dict(image_size=SIDE, timm_model_name=name, timm_pool=pool, timm_proj=proj)
    vision["timm_kwargs"] = sizes
    return dict(embed_dim=embed, custom_text=True, vision_cfg=vision, text_cfg=dict(TEXT))


_COCA = _own(attentional_pool=True, attn_pooler_heads=4, attn_pooler_queries=3, output_tokens=True)
_COCA["text_cfg"] |= dict(context_length=76, embed_cls=True, output_tokens=True)
_COCA |= dict(
    custom_text=True,
    multimodal_cfg=dict(context_length=76, vocab_size=99, width=32, heads=2, layers=1),
)
_SIGLIP = _timm("vit_base_patch16_siglip_224", "map", "none") | dict(init_logit_bias=-10)
_SIGLIP["text_cfg"] = dict(
    context_length=16, vocab_size=40, width=64, heads=4, layers=2, no_causal_mask=True,
    proj_bias=True, pool_type="last", norm_kwargs=dict(eps=1e-6), act_kwargs=dict(
        approximate="tanh"), hf_tokenizer_name="made/up",
    tokenizer_kwargs=dict(clean="canonicalize"),
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": _own(),
    "quickgelu": _own() | dict(quick_gelu=True),
    "clipa": _own(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
    "average": _own(pool_type="avg"),
    "layer-scale": _own(ls_init_value=0.5),
    "inner-norms": _own(qk_norm=True, scale_attn_inner=True, scale_attn=True, scale_fc=True),
    "coca": _COCA,
    "siglip": _SIGLIP,
    "timm-clip": _timm("vit_large_patch14_clip_224", "token", None, patch_size=PATCH),
    "eva01": _timm("eva_giant_patch14_224", "token", None, patch_size=PATCH),
    "eva02": _timm("eva02_base_patch16_clip_224", "token", None),
    "eva02-post-norm": _timm("eva02_enormous_patch14_clip_224", "token", None, patch_size=PATCH),
    "packed": _timm("vit_giant_patch14_dinov2", "token", None, patch_size=PATCH, mlp_ratio=4),
    "pe": _timm("vit_pe_core_base_patch16_224", "map", None, attn_pool_num_heads=4),
    "average-of-patches": _timm("vit_medium_patch16_gap_256", "", "linear"),
    "registers": _timm("vit_medium_patch16_reg4_gap_256", "avg", None),
    "vitamin": _timm("vitamin_small_224", "", "linear", embed_dim=384, num_heads=6),
    "mobileclip": _timm("vit_base_mci_224", "token", None, embed_dim=768, num_heads=12, depth=2),
}


@functools.cache
def network(name: str) -> nn.Module:
    """open_clip's own network of a tiny config, with numbers of a usual size in all weights."""
    config = CONFIGS[name]
    built = build_network(config, bool(config.get("quick_gelu")), name)
    generator = torch.Generator().manual_seed(5)

    def drawn(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator)

    for key, value in built.named_parameters():
        kind = key.rpartition(".")[2]
        if value.ndim >= 2 and value[0].numel() > 1 and "embed" not in key:
            value.data = drawn(value.shape) * value[0].numel() ** -0.5
        elif kind == "weight" and value.ndim == 1:
            value.data = 1 + 0.1 * drawn(value.shape)
        elif value.ndim:
            value.data = (0.5 if "gamma" in kind else 0.0) + 0.2 * drawn(value.shape)
        else:
            value.data = torch.tensor(-2.0 if kind == "logit_bias" else 2.0)
    for key, value in built.named_buffers():
        if "running" in key or key.endswith("num_batches_tracked"):
            value.fill_(1 if key.endswith("var") else 0)
    return built.eval().requires_grad_(False)


def save(name: str, folder: Path, tokenizer: bool = True) -> Path:
    """A folder with config, weights and, where it needs one, tokenizer, as open_clip saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = dict(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    config = dict(model_cfg=CONFIGS[name], preprocess_cfg=pixels)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {key: value.contiguous() for key, value in network(name).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    if tokenizer and "hf_tokenizer_name" in CONFIGS[name]["text_cfg"]:
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, words: str = "a photo of the cat dog sea sky zoo") -> None:
    """A tokenizer of whole words, in transformers' files."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words.split()])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    marks = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=own, **marks).save_pretrained(folder)


@functools.cache
def tiny_clip(name: str) -> FrozenCLIP:
    """The frozen CLIP of a tiny config, one for all tests."""
    return load(name)


def load(name: str) -> FrozenCLIP:
    """The frozen CLIP of a tiny config, by the way that users go: a folder."""
    with tempfile.TemporaryDirectory() as folder:
        clip = load_clip(pretrained=str(save(name, Path(folder))), device="cpu")
        if "hf_tokenizer_name" in CONFIGS[name]["text_cfg"]:
            _ = clip.tokenizer  # while the folder is there
    return clip


def windows(count: int, rows: int = 4, columns: int = 4, patch: int = PATCH) -> Tensor:
    """Normalised windows of so many patches."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.randn(count, 3, rows * patch, columns * patch, generator=generator)
