"""CLIP weights from files, without running code that a file brings along.

``read_checkpoint`` takes safetensors, PyTorch state dicts and OpenAI's TorchScript archives, and
returns one layout, open_clip's: for plain CLIP the keys of OpenAI's, which open_clip's ``CLIP``
shares. Weights in Hugging Face's layout are renamed.
"""

from __future__ import annotations

import collections
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sfp.clip import hugging_face
from sfp.errors import SFPError, refuse_want_of_memory

_MOST_UNPACKED = 8  # weights are stored unpacked; only the code beside them is compressed
_NAMED = ", whose model must be named, such as model='ViT-B-16-SigLIP'"
_COUNTS = ("num_batches_tracked", "position_ids")  # whole numbers that are no weights
_BOOKKEEPING = ("input_resolution", "context_length", "vocab_size")  # only OpenAI's archives


@dataclass(frozen=True)
class Checkpoint:
    """Weights in open_clip's layout and what the file itself says of them.

    Attributes:
        weights: tensors by open_clip's key.
        source: the file, for errors.
        quick_gelu, head_width: the activation, and the width of the image tower's heads, as
            safetensors metadata or OpenAI's layout (64) give them, else None.
        text_heads: how many heads the text tower has, where a config.json says it, else None.
        config: open_clip's config of the model, where the layout shows it (SigLIP's of Hugging
            Face), else None.
    """

    weights: dict[str, Tensor]
    source: str
    quick_gelu: bool | None = None
    head_width: int | None = None
    text_heads: int | None = None
    config: dict[str, Any] | None = None


def read_checkpoint(
    path: str | Path, plain: bool = True, config: Mapping[str, Any] | None = None
) -> Checkpoint:
    """CLIP weights of a safetensors file, a PyTorch file or OpenAI's TorchScript archive.

    Args:
        plain: whether they must be a plain CLIP ViT's.
        config: what lies beside a file in Hugging Face's layout, its config.json.

    Raises:
        SFPError: no such file, not a checkpoint, or not a CLIP ViT.
    """
    path = Path(path)
    if not path.is_file():
        raise SFPError(
            f"There is no checkpoint file {path}; give the path of a .pt or .safetensors file."
        )
    if path.stat().st_size == 0:
        raise SFPError(f"The checkpoint {path} is empty, 0 bytes; download it again.")
    metadata: dict[str, str] = {}
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        elif zipfile.is_zipfile(path) and (root := _torchscript_root(path)) is not None:
            weights = _read_torchscript(path, root)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file makes readers raise anything
        refuse_want_of_memory(error, f"reading {path}")
        raise SFPError(
            f"{path} can't be read as a checkpoint ({_reason(error)}); it may be cut short, or not "
            "hold plain weights: download it again, or save its state dict as .safetensors."
        ) from error
    checkpoint = from_state_dict(weights, str(path), plain, config)
    activation = {"true": True, "false": False}.get(metadata.get("quick_gelu", "").lower())
    if activation is not None:
        checkpoint = replace(checkpoint, quick_gelu=activation)
    if metadata.get("head_width", "").isdecimal():
        checkpoint = replace(checkpoint, head_width=int(metadata["head_width"]))
    return checkpoint


def _reason(error: Exception) -> str:
    """Why a file can't be read, without torch's advice to run what it brings along."""
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text:
        foreign = re.search(r"GLOBAL ([\w.]+)", text)
        return (
            f"it names {foreign[1]}, which weights don't need"
            if foreign
            else "it is no PyTorch file"
        )
    first = text.split("\n")[0].split(". ")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def from_state_dict(
    weights: Any,
    source: str = "the state dict",
    plain: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A state dict in OpenAI's, open_clip's or Hugging Face's layout, without wrappers and prefixes
    of its keys.

    ``plain`` and ``config``: see ``read_checkpoint``.

    Raises:
        SFPError: not a state dict of a CLIP ViT, with what it looks like.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
    if not isinstance(weights, dict) or not weights:
        found = "an empty dict" if isinstance(weights, dict) else f"a {type(weights).__name__}"
        raise SFPError(
            f"{source} holds {found} instead of a state dict; give the weights of a CLIP ViT."
        )
    kept = {}
    for key, value in weights.items():
        key = re.sub(r"^(module\.)?(_orig_mod\.)?", "", str(key))
        if not isinstance(value, Tensor) or key.endswith("attn_mask"):
            continue
        kept[key] = value
        size = value.numel() * value.element_size()
        if value.is_meta or value.layout != torch.strided:
            kind = "on the meta device" if value.is_meta else f"as {value.layout}"
            raise SFPError(
                f"{source} has {key} {kind}, without plain numbers; give weights that are loaded "
                "and dense."
            )
        if size > value.untyped_storage().nbytes():
            raise SFPError(
                f"{source} has {tuple(value.shape)} numbers in {key}, more than it holds; "
                "get a sound copy."
            )
    openai = all(key in kept for key in _BOOKKEEPING)
    for key in _BOOKKEEPING:
        kept.pop(key, None)
    renamed = Checkpoint(kept, source)
    if hugging_face.is_layout(kept):
        renamed = Checkpoint(source=source, **hugging_face.renamed(kept, source, config))
    kept = renamed.weights
    if plain and renamed.config is None:
        # "text." is the text tower of open_clip's CustomTextCLIP
        kept = {key.removeprefix("text."): value for key, value in kept.items()}
        _require_clip_vit(kept, source)
    for key, value in kept.items():
        if not value.is_floating_point() and not key.endswith(_COUNTS):
            kind = str(value.dtype).removeprefix("torch.")
            raise SFPError(
                f"{source} has {kind} numbers in {key}, not plain floating-point weights; "
                "give the model before quantisation."
            )
    broken = [key for key, value in kept.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise SFPError(
            f"{source} has NaN or infinite numbers in {broken[0]} ({len(broken)} tensors in all); "
            "get a sound copy."
        )
    renamed = replace(renamed, weights=kept)
    return replace(renamed, quick_gelu=True, head_width=64) if openai else renamed


def read_config(weights: dict[str, Tensor], source: str) -> dict[str, Any]:
    """The sizes of a CLIP ViT from its weights' shapes, as an open_clip config without heads."""
    conv = weights["visual.conv1.weight"]
    width, patch = conv.shape[0], conv.shape[-1]
    patches = weights["visual.positional_embedding"].shape[0] - 1
    grid = round(patches**0.5)
    if grid * grid != patches:
        raise SFPError(
            f"{source} was trained on a grid of {patches} patches that is not square; "
            "give weights with a square one."
        )
    mlp_width = weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    return dict(
        embed_dim=weights["visual.proj"].shape[1],
        vision_cfg=dict(
            image_size=grid * patch,
            layers=_count_blocks(weights, "visual.transformer.resblocks."),
            width=width,
            patch_size=patch,
            mlp_ratio=(mlp_width + 0.5) / width,  # open_clip rounds width * ratio down
        ),
        text_cfg=dict(
            context_length=weights["positional_embedding"].shape[0],
            vocab_size=weights["token_embedding.weight"].shape[0],
            width=weights["ln_final.weight"].shape[0],
            layers=_count_blocks(weights, "transformer.resblocks."),
        ),
    )


def _count_blocks(weights: dict[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def _require_clip_vit(weights: dict[str, Tensor], source: str) -> None:
    kinds = {
        "visual.layer1.": "a ResNet CLIP",
        "visual.trunk.": "a CLIP with a timm image tower" + _NAMED,
        "visual.attn_pool.": "a CLIP with attention pooling" + _NAMED,
        "logit_bias": "a SigLIP" + _NAMED,
    }
    axes = {  # of what read_config takes its sizes from
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
        "token_embedding.weight": 2,
        "positional_embedding": 2,
        "ln_final.weight": 1,
    }
    problems = [
        f"it is {kinds[start]}" for start in kinds if any(k.startswith(start) for k in weights)
    ]
    problems += [f"it lacks {key}" for key in axes if key not in weights]
    if problems:
        raise SFPError(
            f"{source} is not a CLIP ViT in OpenAI's or open_clip's layout: {problems[0]}; "
            "give the weights of such a model."
        )
    for key, count in axes.items():
        if weights[key].ndim != count or not weights[key].numel():
            raise SFPError(
                f"{source} has {key} of shape {tuple(weights[key].shape)} instead of {count} axes; "
                "get a sound copy."
            )


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:] == b"{" and length < path.stat().st_size)


# ----------------------------------------------------------------------------- TorchScript archives
# torch.load(weights_only=True) refuses them, and torch.jit.load runs what they hold


def _torchscript_root(path: Path) -> str | None:
    """The folder inside a TorchScript archive, or None where the file is an ordinary one.

    Raises:
        BadZipFile: it would unpack to far more than it holds.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > _MOST_UNPACKED * path.stat().st_size:
        raise zipfile.BadZipFile(f"it unpacks to more than {_MOST_UNPACKED} times its size")
    for member in members:
        root, _, rest = member.filename.partition("/")
        if rest == "constants.pkl":
            return root
    return None


class _Inert:
    """Stands for every TorchScript class: keeps its attributes, does nothing."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


class _TensorsOnly(pickle.Unpickler):
    """Reads an archive's ``data.pkl``: tensors and inert objects; any other global is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Inert
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        dtype = getattr(
            torch, name.removesuffix("Storage").lower(), None
        )  # HalfStorage: torch.half
        if module == "torch" and name.endswith("Storage") and isinstance(dtype, torch.dtype):
            return dtype
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # typed lists and dicts
        raise pickle.UnpicklingError(f"the archive names {module}.{name}, which weights don't need")

    def persistent_load(self, saved: Any) -> Tensor:
        kind, dtype, key, _, count = saved
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype, count=count)


def _read_torchscript(path: Path, root: str) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive by dotted name."""
    with zipfile.ZipFile(path) as archive:
        tree = _TensorsOnly(archive, root).load()
    weights: dict[str, Tensor] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, Tensor):
            weights[prefix] = value
        attributes = getattr(value, "attributes", None)
        for name, child in attributes.items() if isinstance(attributes, dict) else ():
            collect(f"{prefix}.{name}" if prefix else name, child)

    collect("", tree)
    return weights
