"""open_clip's models: their names, their configs, and networks built of these."""

from __future__ import annotations

import copy
import csv
import fnmatch
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfp.clip.published import QUICK, entry_of_tag
from sfp.errors import SFPError, refuse_want_of_memory, unknown_choice

_TRANSFORMERS = "install it by: pip install 'sfp-ovss[vision]'"


@functools.cache
def plain_vits() -> dict[str, dict[str, Any]]:
    """open_clip's configs of OpenAI's architecture by name; SigLIP, CLIPA and others are not."""
    import open_clip

    vision = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
    text = {"context_length", "vocab_size", "width", "heads", "layers"}
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    return {
        name: config
        for name, config in configs.items()
        if set(config) <= {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
        and set(config["vision_cfg"]) <= vision
        and set(config["text_cfg"]) <= text
        and isinstance(config["vision_cfg"]["layers"], int)  # a ResNet has four numbers
    }


def open_clip_name(model: str, more: tuple[str, ...] = ()) -> str:
    """open_clip's spelling of a model name, or one of ``more``.

    Raises:
        SFPError: no such model, or one whose image tower is no ViT.
    """
    import open_clip

    for own in more:
        if model.lower() == own.lower():
            return own
    name = model.replace("/", "-").replace("@", "-").removesuffix("px")
    if name not in open_clip.list_models():
        raise unknown_choice("CLIP model", model, [*more, *vit_names()])
    if name not in vit_names():
        kind = open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name")
        raise SFPError(
            f"The image tower of {name} is no plain ViT but {kind or 'a ResNet'}; give another"
            " model, such as ViT-B-16 or ViT-B-16-SigLIP (sfp.list_models() names all)."
        )
    return name


@functools.cache
def vit_names() -> tuple[str, ...]:
    """open_clip's names of models whose image tower is a ViT that SFP takes."""
    import open_clip

    from sfp.clip.towers.timm_vit import takes_timm

    found = []
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        if timm_name := vision.get("timm_model_name"):
            if takes_timm(timm_name):
                found.append(name)
        elif isinstance(vision["layers"], int):
            found.append(name)
    return tuple(found)


def build_network(config: Mapping[str, Any], quick_gelu: bool, source: str) -> nn.Module:
    """open_clip's network of a config, its weights still to be set.

    Args:
        config: open_clip's; ``vision_cfg`` may have ``timm_kwargs``, sizes that are not those of
            the timm model that it names.
        source: what the config is of, for errors.

    Raises:
        SFPError: the config makes no network, or its text tower needs what is not there.
    """
    import open_clip

    config = copy.deepcopy(dict(config))
    config["quick_gelu"] = quick_gelu
    vision, text = config["vision_cfg"], config["text_cfg"]
    timm_kwargs = vision.pop("timm_kwargs", {})
    of_hugging_face = bool(text.get("hf_model_name"))
    custom = config.pop("custom_text", False) or of_hugging_face
    if of_hugging_face:
        require_transformers(f"The text tower of {source}, {text['hf_model_name']},")
        text["hf_model_pretrained"] = False
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        # no time goes into weights that are about to be loaded; transformers' towers have tables
        # that are no weights
        with torch.device("cpu" if of_hugging_face else "meta"):
            network = kind(**config)
            if timm_kwargs:
                _replace_trunk(network.visual, vision, config["embed_dim"], timm_kwargs)
    except SFPError:
        raise
    except Exception as error:  # open_clip's, timm's and transformers' have no common base
        refuse_want_of_memory(error, f"building the network of {source}")
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise SFPError(
            f"The config of {source} makes no network of open_clip {open_clip.__version__}"
            f" ({reason[:200]}); give another model, or put its config right."
        ) from error
    return network if of_hugging_face else _with_memory(network)


def _replace_trunk(visual: nn.Module, vision: Mapping, embed_dim: int, sizes: Mapping) -> None:
    """Put a trunk of other sizes into a ``TimmModel``, made as open_clip makes it."""
    import timm

    pool, proj = vision["timm_pool"], vision.get("timm_proj", "linear")
    name = vision["timm_model_name"]
    if proj in ("linear", "mlp"):
        trunk = timm.create_model(name, **sizes)
        trunk.reset_classifier(0, **(dict(global_pool=pool) if pool else {}))
        bias = visual.head.proj.bias is not None
        visual.head.proj = nn.Linear(trunk.num_features, embed_dim, bias=bias)
    else:
        classes = 0 if proj == "none" else embed_dim
        trunk = timm.create_model(name, num_classes=classes, global_pool=pool, **sizes)
    visual.trunk = trunk
    visual.image_size = trunk.patch_embed.img_size


def _with_memory(network: nn.Module) -> nn.Module:
    """A network from the meta device with memory, and its tables that are no weights filled."""
    network.to_empty(device="cpu")
    for module in network.modules():
        mask = getattr(module, "attn_mask", None)
        if isinstance(mask, Tensor):
            mask.fill_(float("-inf")).triu_(1)
        if hasattr(module, "init_non_persistent_buffers"):  # timm's
            module.init_non_persistent_buffers()
    return network


def require_transformers(what: str) -> None:
    """Raises SFPError where transformers is not installed, saying what needs it."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise SFPError(f"{what} needs transformers; {_TRANSFORMERS}.") from error


def take_weights(
    network: nn.Module, weights: Mapping[str, Tensor], source: str, model: str
) -> nn.Module:
    """A network with weights in open_clip's layout.

    Args:
        source: where the weights are from, ``model`` what the network is of, for errors.

    Raises:
        SFPError: they are not those of this network; the sentence says which tower differs.
    """
    weights, wanted = _renamed(network, weights), network.state_dict()
    for key in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        if key in weights and key in wanted and weights[key].numel() == wanted[key].numel():
            weights[key] = weights[key].reshape(wanted[key].shape)
    for key in [key for key in weights if key.endswith("position_ids") and key not in wanted]:
        del weights[key]  # transformers' tables before 4.31
    problems = [f"{key} is missing" for key in wanted if key not in weights]
    problems += [f"{key} is none of its weights" for key in weights if key not in wanted]
    problems += [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        images = [problem for problem in problems if problem.startswith("visual.")]
        which = "text tower" if not images else "image tower"
        if images and len(images) < len(problems):
            which = "network"
        raise SFPError(
            f"The {which} in {source} is not that of {model} ({(images or problems)[0]}); give the"
            " weights of this model, or name the model that they are of."
        )
    try:
        network.load_state_dict(weights, strict=True)
    except (RuntimeError, MemoryError) as error:
        refuse_want_of_memory(error, f"taking over the weights of {source}")
        raise
    return network


def _renamed(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the network's names: open_clip has text towers under ``text.`` or without."""
    from open_clip.model import convert_to_custom_text_state_dict

    custom, given = hasattr(network, "text"), any(key.startswith("text.") for key in weights)
    if custom and not given:
        return dict(convert_to_custom_text_state_dict(dict(weights)))
    if given and not custom:
        return {key.removeprefix("text."): value for key, value in weights.items()}
    return dict(weights)


# ---------------------------------------------------------------------------- what is known of each

KNOWN = Path(__file__).with_name("models.csv")


@dataclass(frozen=True)
class KnownModel:
    """What is known of one of open_clip's models; measured by tools/dev/check_models.py.

    Attributes:
        name: open_clip's.
        family: of the image tower: "open_clip", its own ViT, or "timm".
        layers, width, heads, patch: of the image tower. image: pixels that it was trained at.
        prefix: how many tokens come before the patches.
        class_token: whether the first of them is a class token.
        pooling: what the image's embedding is made of: "token", "average" or "attention".
        text: the tokenizer: "CLIP" for OpenAI's, else its name on Hugging Face.
        cut: what was left out for the comparison; "" where it was of the whole network.
        image_difference, text_difference: the largest difference of unit vectors to open_clip's own
            ``encode_image`` and ``encode_text``, float32.
        refused: methods that its tower can't serve as they were published.
        reason: why it can't be loaded; "" where it can.
        tags: open_clip's of published weights, for ``pretrained``.
    """

    name: str
    family: str = ""
    layers: int = 0
    width: int = 0
    heads: int = 0
    patch: int = 0
    image: int = 0
    prefix: int = 0
    class_token: bool = False
    pooling: str = ""
    text: str = ""
    cut: str = ""
    image_difference: float = math.nan
    text_difference: float = math.nan
    refused: tuple[str, ...] = ()
    reason: str = ""
    tags: tuple[str, ...] = ()


def list_models(pattern: str = "*", *, all: bool = False) -> dict[str, KnownModel]:
    """open_clip's models by name, with what is known of each.

    >>> siglip = list_models("*siglip2*")
    >>> siglip["ViT-B-16-SigLIP2"].class_token, siglip["ViT-B-16-SigLIP2"].tags
    (False, ('webli',))

    Args:
        pattern: names with ``*`` and ``?``, in any case.
        all: also models that can't be loaded, whose ``reason`` says why.
    """
    found = {}
    for row in _known_rows():
        known = KnownModel(**row, tags=_tags(row["name"]))
        if fnmatch.fnmatchcase(known.name.lower(), pattern.lower()) and (all or not known.reason):
            found[known.name] = known
    return found


@functools.cache
def _known_rows() -> tuple[dict[str, Any], ...]:
    """The rows of models.csv, typed."""
    kinds = {field.name: type(field.default) for field in fields(KnownModel)}
    with KNOWN.open(newline="", encoding="utf-8") as file:
        return tuple(
            {
                name: _typed(value, kinds[name])
                for name, value in row.items()
                if value or name == "name"
            }
            for row in csv.DictReader(file)
        )


def _typed(value: str, kind: type) -> Any:
    if kind is bool:
        return value == "True"
    if kind is tuple:
        return tuple(value.split())
    return kind(value) if kind in (int, float) else value


def _tags(name: str) -> tuple[str, ...]:
    """open_clip's tags of a model, those of its name without or with ``-quickgelu`` included, but
    for a name with it only those that were trained so: loading refuses others.
    """
    import open_clip

    names = (name, name.removesuffix(QUICK), f"{name}{QUICK}")
    tags = dict.fromkeys(
        tag for own in names for tag in open_clip.list_pretrained_tags_by_model(own)
    )
    if name.endswith(QUICK):
        return tuple(tag for tag in tags if entry_of_tag(name, tag)["quick_gelu"])
    return tuple(tags)
