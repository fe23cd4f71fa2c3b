"""Compares each of open_clip's models with open_clip's own encode_image and encode_text.

    python tools/dev/check_models.py            # all: writes sfp/clip/models.csv and docs/models.md
    python tools/dev/check_models.py "*SigLIP*" # some, printed

Weights are made up. A network of more than 100 million numbers is cut to two blocks in each tower,
at its true width, and a vocabulary that is not CLIP's to 5000 words; those of Hugging Face's text
towers get a config.json of their true width, since theirs is on the hub alone. Differences are the
largest of unit vectors, float32, one image of the native size and two texts.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from sfp.clip import load_clip  # noqa: E402
from sfp.clip.clip import PIXEL_MEAN, PIXEL_STD, FrozenCLIP, l2_normalise  # noqa: E402
from sfp.clip.loading import _usual_activation  # noqa: E402
from sfp.clip.models import (  # noqa: E402
    KNOWN,
    build_network,
    list_models,
    plain_vits,
    vit_names,
)
from sfp.errors import SFPError  # noqa: E402
from sfp.methods import METHODS, build_method  # noqa: E402

PAGE = ROOT / "docs/models.md"
MOST, BLOCKS, WORDS = 100_000_000, 2, 5_000
RUN = ("MaskCLIP", "ClearCLIP", "SFP")
# config.json of the text towers that open_clip takes from Hugging Face, at their true width
_ROBERTA = dict(model_type="roberta", hidden_size=768, num_attention_heads=12, type_vocab_size=1,
                intermediate_size=3072, max_position_embeddings=514, layer_norm_eps=1e-5,
                pad_token_id=1, bos_token_id=0, eos_token_id=2)  # fmt: skip
_MT5 = dict(model_type="mt5", d_model=768, d_kv=64, d_ff=2048, num_heads=12, pad_token_id=0,
            feed_forward_proj="gated-gelu", is_encoder_decoder=True, eos_token_id=1,
            decoder_start_token_id=0)  # fmt: skip
_M2M = dict(model_type="m2m_100", d_model=1024, encoder_attention_heads=16, encoder_ffn_dim=4096,
            decoder_attention_heads=16, decoder_ffn_dim=4096, max_position_embeddings=1024,
            is_encoder_decoder=True, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            decoder_start_token_id=2)  # fmt: skip
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA,
    "xlm-roberta-base": {**_ROBERTA, "model_type": "xlm-roberta"},
    "xlm-roberta-large": {**_ROBERTA, "model_type": "xlm-roberta", "hidden_size": 1024,
                          "num_attention_heads": 16, "intermediate_size": 4096},
    "google/mt5-base": _MT5,
    "google/mt5-xl": {**_MT5, "d_model": 2048, "d_ff": 5120, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": _M2M,
    "facebook/nllb-200-distilled-1.3B": {**_M2M, "encoder_ffn_dim": 8192, "decoder_ffn_dim": 8192},
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="?", default="*", help="a pattern; all if left out")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    chosen = fnmatch.filter(open_clip.list_models(), args.names)
    rows = []
    for name in chosen:
        started = time.monotonic()
        rows.append(check(name))
        gc.collect()
        print(f"{name}: {rows[-1]} ({time.monotonic() - started:.0f} s)", flush=True)
    if args.names == "*":
        with KNOWN.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        PAGE.write_text(page(), encoding="utf-8")


def check(name: str) -> dict[str, Any]:
    """The row of one model."""
    config = open_clip.get_model_config(name)
    row = dict.fromkeys(
        ("name", "family", "layers", "width", "heads", "patch", "image", "prefix", "class_token",
         "pooling", "text", "cut", "image_difference", "text_difference", "refused", "reason"), "",
    )  # fmt: skip
    row |= dict(name=name, image=config["vision_cfg"]["image_size"], text=text_of(config))
    if name not in vit_names():
        try:
            load_clip(name)
        except SFPError as error:
            return row | dict(reason=str(error).partition(";")[0])
        raise AssertionError(name)
    with tempfile.TemporaryDirectory() as folder:
        config = with_local_text(config, Path(folder))
        whole, cut = sizes(name, config), ""
        if whole.pop("numbers") > MOST:
            config, cut = cut_down(config), f"{BLOCKS} blocks"
        config["quick_gelu"] = _usual_activation(name, config)
        network = made_up(build_network(config, config["quick_gelu"], name))
        register(name, config, Path(folder))
        try:
            found = compare(name, network, config)
        finally:
            register(name, None, Path(folder))
    return row | whole | found | dict(cut=cut)


def text_of(config: dict[str, Any]) -> str:
    """The tokenizer of a model, "CLIP" for OpenAI's."""
    text = config["text_cfg"]
    return text.get("hf_tokenizer_name") or "CLIP"


def with_local_text(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config whose text tower of Hugging Face has its config.json in a folder."""
    named = config["text_cfg"].get("hf_model_name")
    if named:
        own = {"vocab_size": WORDS, "num_hidden_layers": BLOCKS, "num_layers": BLOCKS,
               "encoder_layers": BLOCKS, "decoder_layers": 1, **TEXT_TOWERS[named]}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(own))
        config["text_cfg"]["hf_model_name"] = str(folder)
    return config


def sizes(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """How many numbers a network has, and its image tower's sizes, without making it."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        import timm

        with torch.device("meta"):
            trunk = timm.create_model(vision["timm_model_name"])
        depth, width, heads = len(trunk.blocks), trunk.embed_dim, trunk.blocks[0].attn.num_heads
        numbers = sum(p.numel() for p in trunk.parameters())
    else:
        depth, width = vision["layers"], vision["width"]
        heads = width // vision.get("head_width", 64)
        numbers = depth * 12 * width**2
    words, text_width = text.get("vocab_size", WORDS), text.get("width", 1024)
    numbers += words * text_width + text.get("layers", BLOCKS) * 12 * text_width**2
    return dict(numbers=numbers, layers=depth, width=width, heads=heads)


def cut_down(config: dict[str, Any]) -> dict[str, Any]:
    """A config of few blocks and words, at its true width."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_kwargs"] = dict(depth=BLOCKS)
    else:
        vision["layers"] = BLOCKS
    for own in (text, config.get("multimodal_cfg", {})):
        if "layers" in own:
            own["layers"] = min(own["layers"], BLOCKS)
        if text_of(config) != "CLIP":  # whose tokenizer is here
            own["vocab_size"] = min(own.get("vocab_size", WORDS), WORDS)
    return config


def register(name: str, config: dict[str, Any] | None, folder: Path) -> None:
    """Give a name of open_clip another config; its own again, if None."""
    if config is not None:
        file = folder / f"{name}.json"
        file.write_text(json.dumps(config))
        open_clip.add_model_config(file)
    else:
        open_clip.factory._MODEL_CONFIG_PATHS.pop()
        open_clip.factory._rescan_model_configs()
    plain_vits.cache_clear()
    vit_names.cache_clear()


def made_up(network: nn.Module) -> nn.Module:
    """A network with numbers of a usual size in all weights."""
    generator = torch.Generator().manual_seed(19)

    def drawn(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator)

    for name, value in network.named_parameters():
        kind = name.rpartition(".")[2]
        if value.ndim >= 2 and value[0].numel() > 1 and "embed" not in name:
            value.data = drawn(value.shape) * value[0].numel() ** -0.5
        elif kind == "weight" and value.ndim == 1:
            value.data = 1 + 0.1 * drawn(value.shape)
        elif "gamma" in kind:
            value.data = 0.5 + 0.1 * drawn(value.shape)
        elif value.ndim:
            value.data = 0.2 * drawn(value.shape)
        else:
            value.data = torch.tensor(-10.0 if kind == "logit_bias" else 2.0)
    for name, value in network.named_buffers():
        if "running" in name:
            value.fill_(1.0 if name.endswith("var") else 0.0)
        elif name.endswith("num_batches_tracked"):
            value.zero_()
    return network.eval()


def compare(name: str, network: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """Differences, tokens and methods of one model."""
    clip = load_clip(
        name,
        network.state_dict(),
        device="cpu",
        quick_gelu=config["quick_gelu"],
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )
    trunk, generator = clip.trunk, torch.Generator().manual_seed(7)
    size = network.visual.image_size  # 384 with patches of 14 among them: what is left is dropped
    size = (size, size) if isinstance(size, int) else tuple(size)
    if hasattr(network.visual, "trunk"):
        size = network.visual.trunk.patch_embed.img_size
    image = torch.randn(1, 3, *size, generator=generator)
    ids = made_up_ids(clip, config, generator)
    with torch.inference_mode():
        ours = (clip.encode_image(image), clip.encode_text(ids))
        padded = torch.nn.functional.pad(ids, (0, clip.text.context - ids.shape[1]))
        theirs = (network.encode_image(image), network.encode_text(padded))
        image_difference, text_difference = (
            float((l2_normalise(a) - l2_normalise(b)).abs().max())
            for a, b in zip(ours, theirs, strict=True)
        )
    refused = [] if trunk.class_token else [
        method for method in METHODS.names() if METHODS.get(method).needs_class_token
    ]  # fmt: skip
    window = torch.randn(1, 3, 4 * trunk.patch, 5 * trunk.patch, generator=generator)
    for method in RUN:
        if method in refused:
            try:
                build_method(method, clip)
            except SFPError:
                continue
            raise AssertionError(f"{method} is not refused")
        features = build_method(method, clip)(window)
        assert features.shape == (1, 4, 5, clip.embed_dim) and torch.isfinite(features).all()
    return dict(
        family="timm" if "timm_model_name" in config["vision_cfg"] else "open_clip",
        patch=trunk.patch,
        prefix=trunk.prefix,
        class_token=trunk.class_token,
        pooling=trunk.tower.pooling,
        image_difference=f"{image_difference:.1e}",
        text_difference=f"{text_difference:.1e}",
        refused=" ".join(refused),
    )


def made_up_ids(clip: FrozenCLIP, config: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Token ids of two texts."""
    text, context = config["text_cfg"], clip.text.context
    if text_of(config) == "CLIP":
        return clip.tokenize(["a photo of a cat.", "the sea"])
    most = min(text.get("vocab_size", WORDS), WORDS)
    ids = torch.randint(4, most, (2, context), generator=generator)
    ends = text.get("eos_id", 2)
    pad = 1 if "roberta" in text_of(config) or "nllb" in text_of(config) else 0
    for row, end in zip(ids, (4, min(7, context - 1)), strict=True):
        row[end], row[end + 1 :] = ends, pad
    return ids


def page() -> str:
    """docs/models.md of the table."""
    known = list_models(all=True)
    takes = [model for model in known.values() if not model.reason]
    plain, cut = len(plain_vits()), sum(bool(model.cut) for model in takes)
    without = sorted({name for model in takes for name in model.refused})
    worst_image = max(model.image_difference for model in takes)
    worst_text = max(model.text_difference for model in takes)
    no_token = sum(not model.class_token for model in takes)
    head = f"""# Models

Made by `python tools/dev/check_models.py` with open_clip {open_clip.__version__}: all of its
{len(known)} configurations, with made-up weights. {len(takes)} have a ViT as image tower; all of
these load and run, and their embeddings equal open_clip's own `encode_image` and `encode_text`
(largest difference of unit vectors in float32: {worst_image:.1e} for images, {worst_text:.1e} for
texts). {len(known) - len(takes)} have none and are refused. {plain} have OpenAI's architecture.
For this comparison {cut} were cut to two or three blocks in each tower, at their true width.
`sfp.list_models("*SigLIP*")` gives the table in Python, with the tags of published weights.

- **tokens**: what comes before the patches, and what the image's embedding is made of: the class
  token, the patches' average, or a pool that attends to tokens. MaskCLIP, ClearCLIP and SFP were
  run on each model. {no_token} models have no class token: there {", ".join(without)} are refused
  as published, and so is the detector SOM; all other methods and detectors run.
- **image**, **text**: the largest difference to `encode_image` and `encode_text`.
- A pool that attends to tokens (SigLIP, PE, CoCa) reads a single patch by its value path: the
  value, past output projection and MLP, as MaskCLIP (Zhou et al., ECCV 2022, Sec. 3.2) reads the
  pool of CLIP's ResNets. It is our reading of SigLIP; no paper is followed there.

| model | tower | blocks | width | patch | image size | tokens | tokenizer | image | text |
| --- | --- | ---: | ---: | ---: | ---: | --- | --- | ---: | ---: |
"""
    lines = [
        f"| {m.name} | {m.family} | {m.layers} | {m.width} | {m.patch} | {m.image} |"
        f" {tokens_of(m)} | {m.text} | {m.image_difference:.1e} | {m.text_difference:.1e} |"
        for m in takes
    ]
    tail = ["", "Refused:", ""]
    tail += [f"- {m.reason}." for m in known.values() if m.reason]
    return head + "\n".join([*lines, *tail]) + "\n"


def tokens_of(model: Any) -> str:
    before = "class token" if model.class_token else "none"
    return f"{before}; pooled by {model.pooling}"


if __name__ == "__main__":
    main()
