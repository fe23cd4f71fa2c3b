"""``load_clip``: a frozen CLIP by open_clip's names and tags, from a local file, or from a state dict."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.parse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sfp.clip.checkpoints import Checkpoint, Sizes, from_state_dict, read_checkpoint, read_sizes
from sfp.errors import SFPError, unknown_choice
from sfp.network import hub, require_published, why_unreached
from sfp.options import check_type

if TYPE_CHECKING:
    from sfp.clip.clip import FrozenCLIP

# The built-in models; beside each file a .json has its SHA-256 and how it was made
BUILT_IN = {
    name: Path(__file__).parent / f"{name.lower()}.safetensors"
    for name in ("Toyland", "Toyland-clean")
}
_QUICK = "-quickgelu"


def load_clip(
    model: str = "ViT-B-16",
    pretrained: str | os.PathLike | Mapping[str, Any] = "openai",
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
    quick_gelu: bool | None = None,
    head_width: int | None = None,
    weights_sha256: str | None = None,
) -> FrozenCLIP:
    """A frozen CLIP ViT.

    Args:
        model: open_clip's name (``ViT-B-16``, ``ViT-L-14-quickgelu``) or OpenAI's spelling (``ViT-B/16``); ``Toyland``
            is the tiny model that comes with this package, ``Toyland-clean`` its twin without outliers.
        pretrained: an open_clip tag (``openai``, ``laion400m_e32``, ``metaclip_400m``); the path of a checkpoint
            (OpenAI or open_clip layout, ``.pt``, ``.safetensors`` or OpenAI's TorchScript archive); or a state dict,
            whose sizes are read from its shapes.
        device: CUDA where there is one, else the CPU, if None.
        precision: ``fp32``, ``bf16`` or ``fp16`` for the image tower; fp32 on a CPU and fp16 elsewhere, if None.
        quick_gelu: the activation, where neither tag nor file tells; OpenAI's QuickGELU is assumed, with a warning.
        head_width: of the image tower's heads, where the model's name doesn't tell; 64 as in every OpenAI model, if None.
        weights_sha256: what the weights must be: the ``weights_sha256`` of a result, which is the model's ``fingerprint`` and the
            same whatever the file's format.

    Returns:
        A ``FrozenCLIP``.

    Raises:
        SFPError: unknown name or tag, a tag that needs the other activation than the name says, a file that is no
            CLIP ViT, weights that must be downloaded while there is no network, or another hash.
    """
    import open_clip

    from sfp.clip.clip import FrozenCLIP

    check_type("model", model, str, "ViT-B-16")
    check_type("pretrained", pretrained, str | os.PathLike | Mapping, "openai")
    check_type("quick_gelu", quick_gelu, bool | None)
    check_type("head_width", head_width, int | None)
    device = _usable_device(device)
    architecture = _open_clip_name(model)
    tag = "a state dict" if isinstance(pretrained, Mapping) else str(pretrained)
    if isinstance(pretrained, Mapping):
        checkpoint = from_state_dict(dict(pretrained))
    elif built_in := _built_in(architecture, tag):
        checkpoint, architecture, tag = _read_built_in(built_in), built_in, built_in.lower()
        if quick_gelu is False:
            raise SFPError(
                f"quick_gelu=False disagrees with {built_in}'s weights, trained with quick_gelu=True; leave it out."
            )
    elif _is_file_name(tag):
        checkpoint = read_checkpoint(Path(tag).expanduser())
        quick_gelu = _activation_of_file(Path(tag), model, checkpoint, quick_gelu)
    else:
        checkpoint, told = _fetch(architecture, tag)
        if quick_gelu is not None and quick_gelu != told:
            raise SFPError(
                f"quick_gelu={quick_gelu} disagrees with the weights {tag!r}, trained with quick_gelu={told}; leave it out."
            )
        quick_gelu = told
    if quick_gelu is None:
        quick_gelu = True if checkpoint.quick_gelu is None else checkpoint.quick_gelu

    sizes = read_sizes(checkpoint.weights, checkpoint.source)
    config = open_clip.get_model_config(architecture) or {}
    if isinstance(pretrained, Mapping) or architecture in BUILT_IN:
        config = config if _agrees(config, sizes) else {}
    elif config and not _agrees(config, sizes):
        if (
            architecture.removesuffix(_QUICK) != "ViT-B-16"
        ):  # the default name promises nothing about a file's sizes
            raise SFPError(
                f"{checkpoint.source} holds a ViT with {sizes.layers} layers of {sizes.width}, patch {sizes.patch} and images of "
                f"{sizes.grid * sizes.patch}, which is not {model}; name the model that the file was made for."
            )
        config = {}
    try:
        network = _build(sizes, config, quick_gelu, head_width)
    except (AssertionError, RuntimeError, ArithmeticError) as error:
        raise SFPError(
            f"The weights of {checkpoint.source} have sizes that make no CLIP ViT ({sizes}); get a sound copy."
        ) from error
    try:
        network.load_state_dict(checkpoint.weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[1:2]).strip()
        raise SFPError(
            f"The weights of {checkpoint.source} don't fit a CLIP ViT of their own sizes ({reason[:200]}); get a sound copy."
        ) from error
    frozen = FrozenCLIP(
        network,
        name=architecture
        if config or architecture in BUILT_IN
        else f"ViT {sizes.layers}x{sizes.width}/{sizes.patch}",
        pretrained=tag,
        quick_gelu=quick_gelu,
        device=device,
        precision=precision or ("fp32" if device.type == "cpu" else "fp16"),
    )
    check_weights(frozen, weights_sha256)
    return frozen


def check_weights(clip: FrozenCLIP, weights_sha256: str | None) -> None:
    """Raises SFPError where a CLIP's weights are not those of a hash; None stands for any."""
    if weights_sha256 is not None and weights_sha256 != clip.fingerprint:
        raise SFPError(
            f"The weights {clip.pretrained!r} of {clip.name} have the SHA-256 {clip.fingerprint}, but weights_sha256={weights_sha256!r} "
            "was asked for; give the weights of that hash, or leave it out."
        )


def _usable_device(device: str | torch.device | None) -> torch.device:
    """A device that holds tensors; CUDA where there is one, else the CPU, if None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).item()
    except Exception as error:  # each kind of device has its own
        reason = str(error).strip().splitlines()[0].split(". ")[0][:120]
        count = torch.cuda.device_count()
        raise SFPError(
            f"device={str(device)!r} can't be used here ({reason}); use 'cpu'"
            + (f", or 'cuda:0' to {count - 1}." if count else ".")
        ) from error
    return torch.device(device)


def _open_clip_name(model: str) -> str:
    """open_clip's spelling of a model name.

    Raises:
        SFPError: no such model, or not a ViT.
    """
    import open_clip

    for built_in in BUILT_IN:
        if model.lower() == built_in.lower():
            return built_in
    name = model.replace("/", "-").replace("@", "-").removesuffix("px")
    vits = [
        known
        for known in open_clip.list_models()
        if _is_plain_vit(open_clip.get_model_config(known))
    ]
    if name not in vits:
        raise unknown_choice("CLIP model", model, [*BUILT_IN, *vits])
    return name


def _is_plain_vit(config: Mapping[str, Any]) -> bool:
    """Whether a model is OpenAI's architecture: class token, learnt positions, its tokenizer. SigLIP and CLIPA are not."""
    vision, text = set(config["vision_cfg"]), set(config["text_cfg"])
    sizes = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
    towers = vision <= sizes and text <= {
        "context_length",
        "vocab_size",
        "width",
        "heads",
        "layers",
    }
    return (
        towers
        and isinstance(config["vision_cfg"]["layers"], int)
        and set(config) <= {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
    )


def _is_file_name(tag: str) -> bool:
    return (
        Path(tag).suffix in (".pt", ".pth", ".bin", ".safetensors")
        or os.sep in tag
        or Path(tag).is_file()
    )


def _built_in(architecture: str, tag: str) -> str | None:
    """Which built-in weights are meant: those that the tag names, else the model's own; None if neither does."""
    tags = {name.lower(): name for name in BUILT_IN}
    if architecture in BUILT_IN and tag.lower() in (
        "openai",
        "toyland",
    ):  # the default, and the config's
        return architecture
    return tags.get(tag.lower())


def _read_built_in(name: str) -> Checkpoint:
    file = BUILT_IN[name]
    if not file.is_file():
        raise SFPError(
            f"The built-in {name} weights are missing at {file}; install the package again, or run tools/dev/train_toyland.py."
        )
    if (
        hashlib.sha256(file.read_bytes()).hexdigest()
        != json.loads(file.with_suffix(".json").read_text())["sha256"]
    ):
        raise SFPError(
            f"The built-in {name} weights at {file} are damaged (SHA-256 differs); install the package again."
        )
    return read_checkpoint(file)


def _activation_of_file(path: Path, model: str, checkpoint: Checkpoint, asked: bool | None) -> bool:
    """The activation of local weights: what was asked for, what the file tells, its name, the model's name."""
    told = checkpoint.quick_gelu
    if told is None:
        told = _activation_of_name(path)
    if told is None and ("/" in model or model.endswith(_QUICK)):
        told = True
    if asked is not None and told is not None and asked != told:
        raise SFPError(
            f"quick_gelu={asked} disagrees with {path}, which was trained with quick_gelu={told}; leave it out."
        )
    if told is False and model.endswith(_QUICK):
        raise SFPError(
            f"{model} means QuickGELU, but {path} was trained with plain GELU; name the model {model.removesuffix(_QUICK)}."
        )
    if asked is not None or told is not None:
        return bool(asked if asked is not None else told)
    warnings.warn(
        f"{path} doesn't tell its activation; OpenAI's QuickGELU is assumed. If it was trained with plain GELU (LAION, DataComp), "
        "pass quick_gelu=False.",
        stacklevel=3,
    )
    return True


def _activation_of_name(path: Path) -> bool | None:
    """Tags of known training sets in a path, such as the folders of Hugging Face's cache, tell the activation."""
    text = str(path).lower()
    if any(tag in text for tag in ("openai", "metaclip", "dfn", "quickgelu")):
        return True
    if any(tag in text for tag in ("laion", "datacomp", "commonpool")):
        return False
    return None


def _fetch(architecture: str, tag: str) -> tuple[Checkpoint, bool]:
    """Weights of an open_clip tag, from its cache or the network, and whether they were trained with QuickGELU.

    Raises:
        SFPError: unknown tag, the wrong activation in the name, no network, or a file that is not the published one.
    """
    import open_clip

    plain = architecture.removesuffix(_QUICK)
    if architecture in BUILT_IN:
        raise SFPError(
            f"The {architecture} model has no weights {tag!r}; leave pretrained out, or give the path of a checkpoint."
        )
    tags = {
        t for name in (plain, plain + _QUICK) for t in open_clip.list_pretrained_tags_by_model(name)
    }
    if tag not in tags:
        raise unknown_choice(f"weights for {plain}", tag, sorted(tags))
    entry = open_clip.get_pretrained_cfg(plain, tag) or open_clip.get_pretrained_cfg(
        plain + _QUICK, tag
    )
    quick_gelu = bool(entry.get("quick_gelu", False))
    if architecture.endswith(_QUICK) and not quick_gelu:
        raise SFPError(
            f"{architecture} means QuickGELU, but the weights {tag!r} were trained with plain GELU; name the model {plain}."
        )
    path = _cached_file(entry)
    if path is None:
        if why := why_unreached(hub() if entry.get("hf_hub") else entry.get("url", "")):
            raise SFPError(
                f"The weights {tag!r} of {plain} are not on this machine and {why}. {_offline_hint(entry)}"
            )
        try:
            path = Path(open_clip.download_pretrained(entry))
        except Exception as error:  # the hub's and urllib's errors have no common base
            reason = str(error).strip().split("\n")[0][:160]
            raise SFPError(
                f"The weights {tag!r} of {plain} could not be downloaded ({reason}). {_offline_hint(entry)}"
            ) from error
    require_published(path, entry.get("url", ""))
    return read_checkpoint(path), quick_gelu


def _cached_file(entry: Mapping[str, Any]) -> Path | None:
    """Where the weights lie already: Hugging Face's cache or open_clip's folder."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    for name in (
        ([file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
        if repository
        else []
    ):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    url = entry.get("url", "")
    local = Path("~/.cache/clip").expanduser() / Path(url).name
    return local if url and local.is_file() else None


def _offline_hint(entry: Mapping[str, Any]) -> str:
    url = Path(urllib.parse.urlparse(entry.get("url", "")).path).name
    hub = entry.get("hf_hub", "").rstrip("/")
    names = " or ".join(
        filter(None, (url, f"open_clip_model.safetensors of {hub} on Hugging Face" if hub else ""))
    )
    return (
        f"Bring the file {names} from elsewhere and pass its path as pretrained (config: model.pretrained), or use the built-in "
        "Toyland model, which needs no download (model='Toyland'; config: configs/cfg_toyland.py)."
    )


def _agrees(config: Mapping[str, Any], sizes: Sizes) -> bool:
    vision = config.get("vision_cfg", {})
    found = dict(
        layers=sizes.layers,
        width=sizes.width,
        patch_size=sizes.patch,
        image_size=sizes.grid * sizes.patch,
    )
    return all(vision.get(key) == value for key, value in found.items())


def _build(sizes: Sizes, config: Mapping[str, Any], quick_gelu: bool, head_width: int | None):
    """An open_clip CLIP of these sizes; heads as asked for, the named model's, or 64 wide as in every OpenAI model."""
    import open_clip

    if head_width is None:
        head_width = config.get("vision_cfg", {}).get("head_width", 64)
    if head_width < 1 or sizes.width % head_width:
        raise SFPError(
            f"head_width={head_width} does not divide the image tower's width {sizes.width}; give one that does."
        )

    vision = dict(
        image_size=sizes.grid * sizes.patch,
        layers=sizes.layers,
        width=sizes.width,
        patch_size=sizes.patch,
    )
    vision["head_width"] = head_width
    vision["mlp_ratio"] = sizes.mlp_width / sizes.width
    text = dict(
        context_length=sizes.context,
        vocab_size=sizes.vocabulary,
        width=sizes.text_width,
        layers=sizes.text_layers,
    )
    text["heads"] = config.get("text_cfg", {}).get("heads", max(1, sizes.text_width // 64))
    with torch.device("meta"):  # no time goes into weights that are about to be loaded
        network = open_clip.CLIP(sizes.embed_dim, vision, text, quick_gelu=quick_gelu)
    network.to_empty(device="cpu")
    network.attn_mask.fill_(float("-inf")).triu_(1)  # no weight, so no checkpoint has it
    return network
