"""``load_clip``: a frozen CLIP by open_clip's names and tags, from a file, or from a state dict."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from sfp.clip.built_in import BUILT_IN, built_in_name, read_built_in
from sfp.clip.checkpoints import Checkpoint, from_state_dict, read_checkpoint, read_config
from sfp.clip.models import build_network, open_clip_name, plain_vits, take_weights
from sfp.clip.packages import Package, cached_weights, is_package, open_package
from sfp.clip.published import (
    QUICK,
    cached_file,
    entry_of,
    entry_of_file,
    entry_of_tag,
    fetched_file,
    pixels_of,
)
from sfp.clip.tokenizing import Tokenizer
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.options import Range, check_type

if TYPE_CHECKING:
    from sfp.clip.clip import FrozenCLIP

_DEFAULT = "ViT-B-16"
_SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of every SigLIP
_ACTIVATIONS = {True: "QuickGELU", False: "plain GELU"}


def load_clip(
    model: str = _DEFAULT,
    pretrained: str | os.PathLike | Mapping[str, Any] = "openai",
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
    quick_gelu: bool | None = None,
    head_width: int | None = None,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
    weights_sha256: str | None = None,
) -> FrozenCLIP:
    """A frozen CLIP ViT.

    >>> load_clip("Toyland", device="cpu").trunk.layers
    12

    Args:
        model: open_clip's name (``ViT-B-16``, ``ViT-L-14-quickgelu``, ``ViT-B-16-SigLIP``; see
            ``sfp.list_models``) or OpenAI's spelling (``ViT-B/16``); ``hf-hub:OWNER/NAME``, a
            repository of Hugging Face in open_clip's or transformers' layout; ``Toyland`` is the
            tiny model that comes with this package, ``Toyland-clean`` its twin without outliers.
            Under the default name a file may have the sizes of any other plain CLIP, or of a SigLIP
            in transformers' layout.
        pretrained: an open_clip tag (``openai``, ``laion400m_e32``, ``webli``); the path of a
            checkpoint (OpenAI's, open_clip's or transformers' layout, ``.pt``, ``.safetensors`` or
            OpenAI's TorchScript archive); a folder with such a file, its config and its
            tokenizer's files; ``hf-hub:OWNER/NAME``; or a state dict.
        device: CUDA where there is one, else the CPU, if None.
        precision: ``fp32``, ``bf16`` or ``fp16`` for the image tower; fp32 on a CPU and fp16
            elsewhere, if None.
        quick_gelu: whether the weights were trained with QuickGELU (OpenAI, MetaCLIP, DFN) or
            plain GELU (LAION, DataComp); ``-quickgelu`` in ``model`` means True. Needed for a file
            that doesn't show it by safetensors metadata ``quick_gelu``, by OpenAI's layout, or by
            being the very file that was published, and for a state dict with the sizes of an
            open_clip model; for other state dicts None is True. A file's name and folder say
            nothing. Models other than plain CLIPs have it from their config and open_clip's tags.
        head_width: of the image tower's heads, for sizes that no model of open_clip has. None is
            64 for OpenAI's layout, and for a state dict in memory if 64 is the only head width
            of open_clip's models (64, 80, 88, 104, 112) that divides the tower's width. Only for
            plain CLIPs.
        pixel_mean, pixel_std: of RGB in [0, 1], as the weights were trained; those of open_clip's
            entry of the weights if None, OpenAI's for sizes of no open_clip model. Needed where
            open_clip has weights of these sizes and this activation with several (ViT-L/14, plain
            GELU), and a file or state dict doesn't show which it is.
        weights_sha256: what the weights must be: the ``weights_sha256`` of a result, which is the
            model's ``fingerprint`` and the same whatever the file's format.

    Raises:
        SFPError: unknown name or tag, an activation, mean or deviation that isn't the weights' or
            is not known, a file that is no CLIP ViT or not the named one, an unknown head width,
            weights that must be downloaded while there is no network, or another hash.
    """
    check_type("model", model, str, _DEFAULT)
    check_type("pretrained", pretrained, str | os.PathLike | Mapping, "openai")
    check_type("quick_gelu", quick_gelu, bool | None)
    check_type("head_width", head_width, int | None)
    device = _usable_device(device)
    in_memory = isinstance(pretrained, Mapping)
    tag = "a state dict" if in_memory else str(pretrained)
    model, tag, package = _package_of(model, tag)
    architecture = _open_clip_name(model)
    plain = architecture in BUILT_IN or architecture in plain_vits()
    entry: dict[str, Any] = {}  # open_clip's of the weights, empty where that is unknown
    if package is not None:
        plain = plain and package.config is None
        checkpoint = read_checkpoint(package.weights, plain, package.hugging_face)
        if package.config is not None and architecture == _DEFAULT:
            checkpoint = replace(checkpoint, config=package.config)
        entry = entry_of_file(package.weights)
        if not entry and package.pixels:
            entry = dict(zip(("mean", "std"), package.pixels, strict=True))
    elif in_memory:
        checkpoint = from_state_dict(dict(pretrained), plain=plain)
    elif built_in := built_in_name(architecture, tag):
        checkpoint, tag = read_built_in(built_in), built_in.lower()
        model = architecture = built_in
    elif _is_file_name(tag):
        path = Path(tag).expanduser()
        checkpoint = read_checkpoint(path, plain)
        entry = entry_of_file(path)
    else:
        entry = entry_of_tag(architecture, tag)
        quick_gelu = _activation(quick_gelu, architecture, tag, entry["quick_gelu"])
        file = fetched_file(entry, f"The weights {tag!r} of {architecture}")
        checkpoint = read_checkpoint(file, plain)

    if not plain or checkpoint.config is not None:
        network, text, name, quick_gelu = _of_config(
            checkpoint, architecture, package, entry, quick_gelu, head_width
        )
        by_shapes = checkpoint.config is not None and (package is None or package.config is None)
        unknown = _SIGLIP_PIXELS if by_shapes else None
        pixels = _normalisation(
            entry, name, quick_gelu, checkpoint.source, pixel_mean, pixel_std, unknown
        )
        return _frozen(
            network, weights_sha256, name, tag, quick_gelu, device, precision, pixels, text
        )
    name, config = _config_of(checkpoint, model, in_memory, head_width)
    known = entry.get("quick_gelu", checkpoint.quick_gelu)
    if quick_gelu is None and in_memory and name not in plain_vits():
        quick_gelu = True
    quick_gelu = _activation(quick_gelu, architecture, checkpoint.source, known)
    pixels = _normalisation(entry, name, quick_gelu, checkpoint.source, pixel_mean, pixel_std)
    network, text = _build(checkpoint, config, quick_gelu), Tokenizer(config["text_cfg"], name)
    return _frozen(network, weights_sha256, name, tag, quick_gelu, device, precision, pixels, text)


def _frozen(
    network: torch.nn.Module,
    weights_sha256: str | None,
    name: str,
    tag: str,
    quick_gelu: bool,
    device: torch.device,
    precision: str | None,
    pixels: tuple[tuple[float, ...], tuple[float, ...]],
    text: Tokenizer,
) -> FrozenCLIP:
    """The frozen CLIP of a network, its weights checked."""
    from sfp.clip.clip import FrozenCLIP

    frozen = FrozenCLIP(
        network,
        name=name,
        pretrained=tag,
        quick_gelu=quick_gelu,
        device=device,
        precision=precision or ("fp32" if device.type == "cpu" else "fp16"),
        pixel_mean=pixels[0],
        pixel_std=pixels[1],
        text=text,
    )
    check_weights(frozen, weights_sha256)
    return frozen


def _package_of(model: str, tag: str) -> tuple[str, str, Package | None]:
    """Model, tag, and the folder or repository that one of them names, if any.

    A name or tag that is known means that, whatever folders lie here; ``./NAME`` is the folder.

    Raises:
        SFPError: both name weights, or what ``open_package`` refuses.
    """
    import open_clip

    built_in = {name.lower() for name in BUILT_IN}
    models, tags = set(open_clip.list_models()), {own for _, own in open_clip.list_pretrained()}
    if model.lower() not in built_in and model not in models and is_package(model):
        if tag not in ("openai", model):
            raise SFPError(
                f"model={model!r} brings its own weights, but pretrained={tag!r} names others;"
                " leave one of them out."
            )
        return _DEFAULT, model, open_package(model)
    known = tag.lower() in built_in or tag in tags
    return model, tag, open_package(tag) if not known and is_package(tag) else None


def _of_config(
    checkpoint: Checkpoint,
    architecture: str,
    package: Package | None,
    entry: Mapping[str, Any],
    quick_gelu: bool | None,
    head_width: int | None,
) -> tuple[torch.nn.Module, Tokenizer, str, bool]:
    """Network, tokenizer, name and activation of a model that is built by a config of open_clip.

    Raises:
        SFPError: the weights are not of that config, or the activation isn't theirs.
    """
    import open_clip

    if head_width is not None:
        raise SFPError(
            f"head_width={head_width} is given, but the config of {checkpoint.source} says how wide"
            " its heads are; leave it out."
        )
    config, name = checkpoint.config, architecture
    if named := config is None or architecture != _DEFAULT:
        config = open_clip.get_model_config(architecture)
    elif package is not None:
        name = package.name
    else:
        vision = config["vision_cfg"]["timm_kwargs"]
        sizes = (vision[key] for key in ("depth", "embed_dim", "patch_size"))
        name = "SigLIP {}x{}/{}".format(*sizes)
    known = entry.get("quick_gelu", checkpoint.quick_gelu)
    if known is None:
        known = _usual_activation(name, config)
    word = architecture if named else ""
    quick_gelu = _activation(quick_gelu, word, checkpoint.source, known)
    network = build_network(config, quick_gelu, name)
    take_weights(network, checkpoint.weights, checkpoint.source, name)
    source = package.tokenizer if package else None
    return network, Tokenizer(config["text_cfg"], name, source), name, quick_gelu


def _usual_activation(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a model's text tower, and its image tower where it is open_clip's, use QuickGELU.

    What all of open_clip's weights of it have, else what its config says.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    found = {entry_of(name, tag)["quick_gelu"] for tag in tags}
    return found.pop() if len(found) == 1 else bool(config.get("quick_gelu", False))


def check_weights(clip: FrozenCLIP, weights_sha256: str | None) -> None:
    """Raises SFPError where a CLIP's weights are not those of a hash; None stands for any."""
    if weights_sha256 is not None and weights_sha256 != clip.fingerprint:
        raise SFPError(
            f"The weights {clip.pretrained!r} of {clip.name} have the SHA-256 {clip.fingerprint}, "
            f"but weights_sha256={weights_sha256!r} was asked for; give the weights of that hash, "
            "or leave it out."
        )


def _usable_device(device: str | torch.device | None) -> torch.device:
    """A device that holds tensors; CUDA where there is one, else the CPU, if None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).item()
    except Exception as error:  # each kind of device has its own
        refuse_want_of_memory(error, f"asking the device {str(device)!r} for a number")
        reason = str(error).strip().splitlines()[0].split(". ")[0][:120]
        if reason.startswith("Expected one of"):  # all kinds that torch was ever built for
            reason = "torch knows no such kind of device"
        count = torch.cuda.device_count()
        raise SFPError(
            f"device={str(device)!r} can't be used here ({reason}); use 'cpu'"
            + (f", or 'cuda:0' to {count - 1}." if count else ".")
        ) from error
    return torch.device(device)


# ---------------------------------------------------------------------------- names, sizes, heads


def _open_clip_name(model: str) -> str:
    """open_clip's spelling of a model name, or a built-in model's.

    Raises:
        SFPError: no such model, or not a ViT.
    """
    return open_clip_name(model, tuple(BUILT_IN))


def _config_of(
    checkpoint: Checkpoint, model: str, in_memory: bool, head_width: int | None
) -> tuple[str, dict[str, Any]]:
    """Name and open_clip config of the model that weights are of, by all sizes that they show.

    Raises:
        SFPError: the file is not of the model that was named, or its head width is unknown.
    """
    architecture, vits = _open_clip_name(model), plain_vits()
    config = read_config(checkpoint.weights, checkpoint.source)
    found = [name for name, known in vits.items() if _sizes(known) == _sizes(config)]
    vision, text = config["vision_cfg"], config["text_cfg"]
    layers, width, patch = vision["layers"], vision["width"], vision["patch_size"]
    # a name that nobody need have given says nothing about sizes
    free = in_memory or architecture.removesuffix(QUICK) == _DEFAULT
    if architecture in BUILT_IN and width == 128:  # both built-in models have 2 heads of 64
        name, known = architecture, 64
    elif found and (architecture in found or free):
        name = architecture if architecture in found else found[0]
        vision, text = dict(vits[name]["vision_cfg"]), vits[name]["text_cfg"]
        known = vision.get("head_width", 64)
    elif free:
        name, known = f"ViT {layers}x{width}/{patch}", checkpoint.head_width
        widths = {vit["vision_cfg"].get("head_width", 64) for vit in vits.values()}
        if in_memory and [heads for heads in widths if width % heads == 0] == [64]:
            known = 64
    else:
        raise SFPError(
            f"{checkpoint.source} holds a ViT with {layers} layers of {width}, patch {patch} and "
            f"images of {vision['image_size']}, which is not {model}; name the model that "
            f"the file was made for{', ' + found[0] if found else ''}."
        )
    vision["head_width"] = known if head_width is None else head_width
    if vision["head_width"] is None:
        raise SFPError(
            f"{checkpoint.source} holds a ViT with {layers} layers of {width}, which no model of "
            "open_clip has, so the width of its heads is unknown; give head_width, 64 in most."
        )
    if vision["head_width"] < 1 or width % vision["head_width"]:
        raise SFPError(
            f"head_width={vision['head_width']} does not divide the image tower's width {width}; "
            "give one that does."
        )
    heads = checkpoint.text_heads or max(1, text["width"] // 64)
    text = {"heads": heads, **text}
    return name, dict(embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=text)


def _sizes(config: Mapping[str, Any]) -> list[int]:
    """All that the weights of a model show of its config."""
    vision, text = {"mlp_ratio": 4.0, **config["vision_cfg"]}, config["text_cfg"]
    return [
        config["embed_dim"],
        int(vision["width"] * vision["mlp_ratio"]),
        *(vision[key] for key in ("layers", "width", "patch_size", "image_size")),
        *(text[key] for key in ("layers", "width", "context_length", "vocab_size")),
    ]


def _build(checkpoint: Checkpoint, config: Mapping[str, Any], quick_gelu: bool) -> torch.nn.Module:
    """open_clip's CLIP with the weights of a checkpoint."""
    import open_clip

    try:
        with torch.device("meta"):  # no time goes into weights that are about to be loaded
            network = open_clip.CLIP(**config, quick_gelu=quick_gelu)
        network.to_empty(device="cpu")
        network.attn_mask.fill_(float("-inf")).triu_(1)  # no weight, so no checkpoint has it
        network.load_state_dict(checkpoint.weights, strict=True)
    except (AssertionError, RuntimeError, ArithmeticError, MemoryError) as error:
        refuse_want_of_memory(error, f"taking over the weights of {checkpoint.source}")
        first, _, reasons = str(error).partition("\n")  # torch heads its list of reasons
        reason = (reasons or first or type(error).__name__).strip().split("\n")[0]
        raise SFPError(
            f"The weights of {checkpoint.source} don't fit a CLIP ViT of their own sizes "
            f"({reason[:200]}); get a sound copy."
        ) from error
    return network


# ---------------------------------------------------------- activation, and mean and deviation


def _activation(asked: bool | None, architecture: str, source: str, known: bool | None) -> bool:
    """Whether the MLPs use QuickGELU.

    Args:
        asked: the user's ``quick_gelu``; a name with ``-quickgelu`` says it, too.
        known: what is known of the weights.

    Raises:
        SFPError: nothing says it, or the user's word is not true of the weights.
    """
    word = f"quick_gelu={asked}"
    if architecture.endswith(QUICK) or architecture in BUILT_IN:
        if asked is False:
            raise SFPError(
                f"quick_gelu=False disagrees with the model {architecture}; leave it out."
            )
        asked, word = True, architecture
    if None not in (asked, known) and asked != known:
        raise SFPError(
            f"{word} disagrees with the weights {source}, which were trained with "
            f"{_ACTIVATIONS[known]}; give quick_gelu={known}, or a model name that fits."
        )
    if asked is None and known is None:
        raise SFPError(
            f"{source} doesn't say whether it was trained with QuickGELU (OpenAI, MetaCLIP, DFN) "
            "or plain GELU (LAION, DataComp); give quick_gelu=True or quick_gelu=False"
            " (command: --quick-gelu or --no-quick-gelu)."
        )
    return known if asked is None else asked


def _normalisation(
    entry: Mapping[str, Any],
    name: str,
    quick_gelu: bool,
    source: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    unknown: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels that weights were trained with.

    Args:
        entry: open_clip's of the weights; empty where unknown.
        name: of open_clip's model that has their sizes, or another.
        mean, std: the user's word.
        unknown: what no model of open_clip has; OpenAI's if None.

    Raises:
        SFPError: nothing says them, or the user's word is not true of the weights.
    """
    from sfp.clip.clip import PIXEL_MEAN, PIXEL_STD

    usual = unknown or (PIXEL_MEAN, PIXEL_STD)
    known = {pixels_of(entry)} if entry else _known_pixels(name, quick_gelu) or {usual}
    if mean is None and std is None:
        if len(known) == 1:
            return known.pop()
        ways = " or ".join(sorted(f"pixel_mean={m} with pixel_std={s}" for m, s in known))
        raise SFPError(
            f"{source} doesn't say with which mean and deviation of the pixels it was trained; "
            f"give {ways}."
        )
    for what, values in (("pixel_mean", mean), ("pixel_std", std)):
        check_type(what, values, Sequence[Annotated[float, Range(0, 1)]], list(PIXEL_MEAN))
        if len(values) != 3 or (what == "pixel_std" and 0 in values):
            raise SFPError(f"{what} is {values}; give three numbers, such as {list(PIXEL_STD)}.")
    given = (tuple(mean), tuple(std))
    if entry and given not in known:
        raise SFPError(
            f"pixel_mean={list(mean)} with pixel_std={list(std)} disagrees with the weights "
            f"{source}, which were trained with {known.pop()}; leave both out."
        )
    return given


def _known_pixels(name: str, quick_gelu: bool) -> set[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Mean and deviation of all of open_clip's weights of a model's sizes and an activation."""
    import open_clip

    vits = plain_vits()
    same = {other for other in vits if name in vits and _sizes(vits[other]) == _sizes(vits[name])}
    same |= {name, name.removesuffix(QUICK)}
    entries = [entry_of(*pair) for pair in open_clip.list_pretrained() if pair[0] in same]
    return {pixels_of(entry) for entry in entries if entry["quick_gelu"] == quick_gelu}


# ------------------------------------------------------------------------------ where weights lie


def weights_file(model: str, pretrained: str) -> Path | None:
    """The file that ``load_clip`` would read, None where it would be downloaded first.

    Raises:
        SFPError: unknown name or tag.
    """
    for name in (model, pretrained):
        if is_package(name):
            return cached_weights(name)
    architecture = _open_clip_name(model)
    if built_in := built_in_name(architecture, pretrained):
        return BUILT_IN[built_in]
    if _is_file_name(pretrained):
        path = Path(pretrained).expanduser()
        return path if path.is_file() else None
    return cached_file(entry_of_tag(architecture, pretrained))


def _is_file_name(tag: str) -> bool:
    endings = (".pt", ".pth", ".bin", ".safetensors")
    return Path(tag).suffix in endings or os.sep in tag or Path(tag).is_file()
