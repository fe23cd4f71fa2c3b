"""Reading CLIP weights from files, never running code that a file brings along.

``read_checkpoint`` takes safetensors, PyTorch state dicts and OpenAI's own TorchScript archives, and returns one
layout: the keys of OpenAI's CLIP, which open_clip's ``CLIP`` shares.
"""

from __future__ import annotations

import collections
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sfp.errors import SFPError

_MOST_UNPACKED = 8  # weights are stored as they are; only the code beside them is packed
_BOOKKEEPING = (
    "input_resolution",
    "context_length",
    "vocab_size",
)  # entries that OpenAI's archives carry


@dataclass(frozen=True)
class Checkpoint:
    """Weights in OpenAI's layout and what the file tells of their activation (None: nothing)."""

    weights: dict[str, Tensor]
    quick_gelu: bool | None
    source: str


@dataclass(frozen=True)
class Sizes:
    """Sizes of a CLIP ViT as its weights' shapes give them."""

    embed_dim: int
    width: int
    layers: int
    patch: int
    grid: int
    mlp_width: int
    text_width: int
    text_layers: int
    context: int
    vocabulary: int


def read_checkpoint(path: str | Path) -> Checkpoint:
    """CLIP weights from ``.safetensors``, ``.pt``/``.bin``/``.pth`` or OpenAI's TorchScript archive.

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
    archive = False
    metadata: dict[str, str] = {}
    try:
        if _looks_like_safetensors(path):
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        elif zipfile.is_zipfile(path) and _archive_root(path) is not None:  # which refuses a bomb
            archive = True
            weights = _read_torchscript(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file makes readers raise anything
        raise SFPError(
            f"{path} can't be read as a checkpoint ({_reason(error)}); it may be cut short, or not hold "
            "plain weights: download it again, or save its state dict as .safetensors."
        ) from error
    checkpoint = from_state_dict(weights, str(path))
    if "quick_gelu" in metadata:
        return Checkpoint(
            checkpoint.weights, metadata["quick_gelu"].lower() == "true", checkpoint.source
        )
    return Checkpoint(checkpoint.weights, True, checkpoint.source) if archive else checkpoint


def _reason(error: Exception) -> str:
    """Why a file can't be read, without torch's advice to run what it brings along."""
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error):
        return (
            f"it names {foreign[1]}, which weights have no need of"
            if foreign
            else "it is no PyTorch file"
        )
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0].split('. ')[0][:200]}"
        if str(error)
        else type(error).__name__
    )


def from_state_dict(weights: Any, source: str = "the state dict") -> Checkpoint:
    """A state dict in OpenAI's or open_clip's layout as a ``Checkpoint``; wrappers and prefixes are taken off.

    Raises:
        SFPError: not a state dict of a CLIP ViT, with what it looks like.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
    if not isinstance(weights, dict) or not weights:
        found = (
            f"an empty {type(weights).__name__}"
            if isinstance(weights, dict)
            else f"a {type(weights).__name__}"
        )
        raise SFPError(
            f"{source} holds {found} instead of a state dict; give the weights of a CLIP ViT."
        )
    plain = {}
    for key, value in weights.items():
        key = str(key).removeprefix("module.").removeprefix("_orig_mod.")
        key = key.removeprefix(
            "text."
        )  # open_clip's CustomTextCLIP keeps the text tower in its own room
        if isinstance(value, Tensor) and not key.endswith("attn_mask"):
            if (
                value.layout != torch.strided
                or value.numel() * value.element_size() > value.untyped_storage().nbytes()
            ):
                raise SFPError(
                    f"{source} has {tuple(value.shape)} numbers in {key}, more than it holds; get a sound copy."
                )
            plain[key] = value
    openai = all(key in plain for key in _BOOKKEEPING)
    for key in _BOOKKEEPING:
        plain.pop(key, None)
    _require_clip_vit(plain, source)
    whole = [
        key
        for key, value in plain.items()
        if not value.is_floating_point() or value.layout != torch.strided
    ]
    if whole:
        kind = str(plain[whole[0]].dtype).removeprefix("torch.")
        raise SFPError(
            f"{source} has {kind} numbers in {whole[0]}, not plain floating-point weights; give the model before quantisation."
        )
    broken = [key for key, value in plain.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise SFPError(
            f"{source} has NaN or infinite numbers in {broken[0]} ({len(broken)} tensors in all); get a sound copy."
        )
    return Checkpoint(plain, True if openai else None, source)


def read_sizes(weights: dict[str, Tensor], source: str) -> Sizes:
    """The sizes of a CLIP ViT from its weights' shapes."""
    conv = weights["visual.conv1.weight"]
    patches = weights["visual.positional_embedding"].shape[0] - 1
    grid = round(patches**0.5)
    if grid * grid != patches:
        raise SFPError(
            f"{source} was trained on a grid of {patches} patches that is not square; give weights with a square one."
        )
    return Sizes(
        embed_dim=weights["visual.proj"].shape[1],
        width=conv.shape[0],
        layers=_count_blocks(weights, "visual.transformer.resblocks."),
        patch=conv.shape[-1],
        grid=grid,
        mlp_width=weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        text_width=weights["ln_final.weight"].shape[0],
        text_layers=_count_blocks(weights, "transformer.resblocks."),
        context=weights["positional_embedding"].shape[0],
        vocabulary=weights["token_embedding.weight"].shape[0],
    )


def _count_blocks(weights: dict[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def _require_clip_vit(weights: dict[str, Tensor], source: str) -> None:
    kinds = {
        "visual.layer1.": "a ResNet CLIP",
        "visual.trunk.": "a CLIP with a timm image tower",
        "visual.attn_pool.": "a CLIP with attention pooling",
        "vision_model.": "a CLIP in Hugging Face's layout",
        "visual_projection.": "a CLIP in Hugging Face's layout",
        "logit_bias": "a SigLIP",
    }
    found = next(
        (kind for prefix, kind in kinds.items() if any(key.startswith(prefix) for key in weights)),
        None,
    )
    needed = {
        "visual.conv1.weight": 4, "visual.class_embedding": 1, "visual.positional_embedding": 2, "visual.ln_pre.weight": 1,
        "visual.ln_post.weight": 1, "visual.proj": 2, "visual.transformer.resblocks.0.attn.in_proj_weight": 2,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": 2, "token_embedding.weight": 2, "positional_embedding": 2,
        "ln_final.weight": 1, "text_projection": 2,
    }  # fmt: skip
    missing = [key for key in needed if key not in weights]
    if found or missing:
        what = f"it is {found}" if found else f"it lacks {missing[0]}"
        raise SFPError(
            f"{source} is not a CLIP ViT in OpenAI's or open_clip's layout: {what}; give the weights of such a model."
        )
    for key, axes in needed.items():
        if weights[key].ndim != axes or not weights[key].numel():
            raise SFPError(
                f"{source} has {key} of shape {tuple(weights[key].shape)} instead of {axes} axes; get a sound copy."
            )


def _looks_like_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return (
        len(head) == 9
        and head[8:9] == b"{"
        and int.from_bytes(head[:8], "little") < path.stat().st_size
    )


# --------------------------------------------------------------------------------------------- TorchScript archives
def _archive_root(path: Path) -> str | None:
    """The folder inside a TorchScript archive, or None where the file is an ordinary one.

    Raises:
        BadZipFile: it would unpack to far more than it holds.
    """
    with zipfile.ZipFile(path) as archive:
        if (
            sum(member.file_size for member in archive.infolist())
            > _MOST_UNPACKED * path.stat().st_size
        ):
            raise zipfile.BadZipFile(f"it unpacks to more than {_MOST_UNPACKED} times its size")
        for name in archive.namelist():
            root, _, rest = name.partition("/")
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
    """Reads a TorchScript archive's ``data.pkl``: tensors and inert objects; any other global is refused."""

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
        if module == "torch" and name.endswith("Storage"):
            return {"HalfStorage": torch.half, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
                    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
                    "BoolStorage": torch.bool, "ByteStorage": torch.uint8}[name]  # fmt: skip
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # typed lists and dicts
        raise pickle.UnpicklingError(
            f"the archive names {module}.{name}, which weights have no need of"
        )

    def persistent_load(self, saved: Any) -> Tensor:
        kind, dtype, key, _, count = saved
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        return (
            torch.frombuffer(data, dtype=dtype, count=count)
            if count
            else torch.empty(0, dtype=dtype)
        )


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive by dotted name."""
    with zipfile.ZipFile(path) as archive:
        tree = _TensorsOnly(archive, _archive_root(path)).load()
    weights: dict[str, Tensor] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, Tensor):
            weights[prefix] = value
        attributes = getattr(value, "attributes", None)
        for name, child in attributes.items() if isinstance(attributes, dict) else ():
            collect(f"{prefix}.{name}" if prefix else name, child)

    collect("", tree)
    for name in _BOOKKEEPING:  # there they are plain attributes or buffers
        weights.setdefault(name, torch.tensor(0))
    return weights
