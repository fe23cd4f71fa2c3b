"""A SAM's files: where they lie, and transformers' model of them.

Published are facebook/sam-vit-base, -large, -huge; the released .pth files have the same numbers
under other names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfp.errors import SFPError
from sfp.network import cached_hub_file, hub_file

SAM_BASE = "facebook/sam-vit-base"
_FILES = ("config.json", "model.safetensors")
_HUB_NAME = r"[\w.-]+/[\w.-]+"
# the three published sizes by their width: blocks, heads, blocks with global attention
_SIZES = {
    768: (12, 12, (2, 5, 8, 11)),
    1024: (24, 16, (5, 11, 17, 23)),
    1280: (32, 16, (7, 15, 23, 31)),
}
# names of the released .pth files on the left
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^image_encoder\.", "vision_encoder."),
        (r"patch_embed\.proj\.", "patch_embed.projection."),
        (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
        (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
        (r"neck\.0\.", "neck.conv1."),
        (r"neck\.1\.", "neck.layer_norm1."),
        (r"neck\.2\.", "neck.conv2."),
        (r"neck\.3\.", "neck.layer_norm2."),
        (r"mask_downscaling\.0\.", "mask_embed.conv1."),
        (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
        (r"mask_downscaling\.3\.", "mask_embed.conv2."),
        (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
        (r"mask_downscaling\.6\.", "mask_embed.conv3."),
        (r"point_embeddings\.", "point_embed."),
        (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        (r"output_upscaling\.0\.", "upscale_conv1."),
        (r"output_upscaling\.1\.", "upscale_layer_norm."),
        (r"output_upscaling\.3\.", "upscale_conv2."),
        (r"(prediction_head|mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
        (r"(prediction_head|mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
        (r"(prediction_head|mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
    )
)


def find_files(name: str, option: str, weights: str | None) -> tuple[Path | None, Path]:
    """Files of config and weights; None where there is no config.

    Raises:
        SFPError: they are not here and can't be fetched, or are not the published ones.
    """
    local = Path(weights or name).expanduser()
    if weights or local.exists():
        file = _file_of(local)
        if file is None:
            what = f"{_FILES[1]} in" if local.is_dir() else "file"
            raise SFPError(
                f"There is no {what} {local} ({option}{'_weights' if weights else ''}); give the"
                " folder or the file of a SAM's weights."
            )
        config = file.with_name(_FILES[0])
        return (config if config.is_file() else None), file
    if not re.fullmatch(_HUB_NAME, name):
        raise SFPError(
            f"{option} is {name!r}, which is no file or folder here and no name on Hugging Face;"
            f" give one such as {SAM_BASE}."
        )
    what = f"The weights of {name} ({option})"
    advice = (
        f"bring {' and '.join(_FILES)} of it from elsewhere and pass their folder as"
        f" {option}_weights"
    )
    config, file = (hub_file(name, own, what, advice) for own in _FILES)
    if config is None or file is None:
        raise SFPError(f"{name} ({option}) has no {' and '.join(_FILES)}; {advice}.")
    return config, file


def _file_of(local: Path) -> Path | None:
    """The weights at a path, which may be a folder."""
    file = local / _FILES[1] if local.is_dir() else local
    return file if file.is_file() else None


def read_model(config: Path | None, file: Path, option: str) -> nn.Module:
    """transformers' model of a file.

    Raises:
        SFPError: the file is of another kind of model.
    """
    config_class, model_class = require_transformers(option)
    stated: dict[str, Any] = {}
    if config is not None:
        stated = json.loads(config.read_text(encoding="utf-8"))
        kind = stated.get("model_type")
        if kind != "sam":
            raise SFPError(
                f"{config} is of a model of the kind {kind!r}; {option} needs a SAM, such as"
                f" {SAM_BASE}."
            )
    state = _renamed(_tensors(file))
    embedded = state.get("vision_encoder.patch_embed.projection.weight")
    width = None if embedded is None else len(embedded)
    if not stated:
        if width not in _SIZES:
            raise SFPError(
                f"{file} ({option}) has the weights of no published SAM and no config.json beside"
                " it; give a SAM's folder with both."
            )
        layers, heads, places = _SIZES[width]
        stated["vision_config"] = dict(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            global_attn_indexes=list(places),
        )
    with torch.device("meta"):
        model = model_class(config_class(**stated))
    tied = "{}.positional_embedding".format
    inner, outer = tied("prompt_encoder.shared_embedding"), tied("shared_image_embedding")
    for one, other in ((inner, outer), (outer, inner)):
        if one not in state and other in state:
            state[one] = state[other]
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [key for key, shape in wanted.items() if key not in state or state[key].shape != shape]
    if wrong:
        raise SFPError(
            f"{file} ({option}) lacks {len(wrong)} of the {len(wanted)} weights of a SAM of its"
            f" config, or has them in another shape, such as {wrong[0]}; give a sound file of"
            " image encoder, prompt encoder and mask decoder."
        )
    model.load_state_dict({key: state[key].float() for key in wanted}, assign=True)
    return model


def require_transformers(option: str) -> tuple[type, type]:
    """transformers' classes of SAM's config and model.

    Raises:
        SFPError: it is not installed.
    """
    try:
        from transformers import SamConfig, SamModel
    except ImportError as error:
        reason = str(error).splitlines()[0][:120]
        raise SFPError(
            f"{option} is a SAM, which needs transformers, and that can't be imported here"
            f" ({reason}); install the extra vision of this package, or transformers itself."
        ) from error
    return SamConfig, SamModel


def _tensors(file: Path) -> Mapping[str, Tensor]:
    if file.suffix in (".pth", ".pt", ".bin"):
        return torch.load(file, map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    return load_file(file)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under transformers' names."""
    if not any(key.startswith("image_encoder.") for key in state):
        return dict(state)
    found = {}
    for key, value in state.items():
        for pattern, name in _NAMES:
            key = pattern.sub(name, key)
        found[key] = value
    return found


def cached_file(name: str) -> Path | None:
    """The weights of a name or folder where they are on this machine."""
    if Path(name).expanduser().exists():
        return _file_of(Path(name).expanduser())
    return cached_hub_file(name, _FILES[1]) if re.fullmatch(_HUB_NAME, name) else None
