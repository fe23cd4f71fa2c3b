"""The outside eye of ProxyCLIP: timm's ViTs (DINO, DINOv2 ...), or plain colours."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfp.clip.clip import PIXEL_MEAN, PIXEL_STD
from sfp.errors import SFPError
from sfp.network import hub, require_published, why_unreached

COLOUR_CELL = 8  # pixels


def load_proxy(
    name: str, weights: str | None, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """A frozen proxy: normalised windows (B, 3, H, W) to a map (B, C, h', w').

    Args:
        name: a timm ViT, with its tag; or "colour", the mean colours of cells of 8x8 pixels, which needs no weights
            (meant for Toyland, whose things have one colour each).
        weights: a local file for the timm model; its own download otherwise.
        device, dtype: where and in what it runs.

    Raises:
        SFPError: unknown name, another kind of model, or weights that can't be had.
    """
    if name == "colour":
        return mean_colours
    import timm

    base = name.split(".")[0]
    if not timm.is_model(base):
        close = difflib.get_close_matches(
            name, timm.list_models("vit_*", pretrained=True), n=1, cutoff=0.4
        )
        hint = f" such as {close[0]}" if close else " such as vit_base_patch8_224.dino"
        raise SFPError(
            f"timm has no model {name!r}; give proxy a ViT's name{hint}, 'colour', or a callable."
        )
    options = dict(num_classes=0, dynamic_img_size=True)
    try:
        with torch.device("meta"):  # its shape alone
            timm.create_model(base, **options)
    except TypeError as error:
        raise SFPError(
            f"timm's {name} takes no windows of other sizes; give proxy a plain ViT such as vit_base_patch8_224.dino."
        ) from error
    repository = "" if weights else _require_download(name)
    overlay = (
        dict(pretrained_cfg_overlay=dict(file=str(Path(weights).expanduser()))) if weights else {}
    )
    if weights and not Path(weights).expanduser().is_file():
        raise SFPError(
            f"There is no file {weights} (proxy_weights of ProxyCLIP); give the path of {name}'s weights."
        )
    try:
        model = timm.create_model(
            name, pretrained=True, num_classes=0, dynamic_img_size=True, **overlay
        )
    except TypeError as error:
        raise SFPError(
            f"timm's {name} takes no windows of other sizes; give proxy a plain ViT such as vit_base_patch8_224.dino."
        ) from error
    except Exception as error:  # the hub's, safetensors' and torch's errors have no common base
        reason = str(error).strip().split("\n")[0][:160]
        raise SFPError(
            f"The weights of timm's {name} can't be had ({reason}); bring the file and pass its path as proxy_weights, or give proxy "
            "a callable, or 'colour'."
        ) from error
    _require_published(repository)
    return TimmProxy(model.to(device, dtype))


def _require_download(name: str) -> str:
    """The hub's repository of a timm model.

    Raises:
        SFPError: its weights neither lie in the hub's cache nor can be fetched, or are not the published ones.
    """
    from timm.models import get_pretrained_cfg

    try:
        entry = get_pretrained_cfg(name)
    except RuntimeError:
        entry = None
    if entry is None or not entry.hf_hub_id:
        raise SFPError(
            f"timm has no weights {name!r}; give proxy a name with one of its tags, such as vit_base_patch8_224.dino."
        )
    repository = entry.hf_hub_id if "/" in (entry.hf_hub_id or "") else f"timm/{name}"
    if _require_published(repository):
        return repository
    if why := why_unreached(hub()):
        raise SFPError(
            f"The weights of timm's {name} are not on this machine and {why}; bring model.safetensors of {repository} on Hugging "
            "Face from elsewhere and pass its path as proxy_weights, or give proxy a callable, or 'colour'."
        )
    return repository


def _require_published(repository: str) -> bool:
    """Whether weights lie in the hub's cache; raises SFPError where they are not the published ones."""
    from huggingface_hub import try_to_load_from_cache

    kept = (
        [
            try_to_load_from_cache(repository, file)
            for file in ("model.safetensors", "pytorch_model.bin")
        ]
        if repository
        else []
    )
    files = [Path(file) for file in kept if isinstance(file, str)]
    for file in files:
        require_published(file)
    return bool(files)


def mean_colours(windows: Tensor) -> Tensor:
    """Mean normalised colour of each cell: (B, 3, H / 8, W / 8), a small constant added as fourth so that grey has a direction."""
    cells = F.adaptive_avg_pool2d(
        windows.float(), tuple(max(1, side // COLOUR_CELL) for side in windows.shape[-2:])
    )
    return torch.cat([cells, torch.full_like(cells[:, :1], 0.1)], 1)


class TimmProxy:
    """A timm ViT's last tokens after its final norm, class and register tokens dropped.

    Windows come normalised for CLIP and go in with the model's own mean and deviation. For grids other than the native
    one timm resizes positions bicubic with antialiasing, which is not the authors' way bit for bit.
    """

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)
        parameter = next(model.parameters())
        own_mean, own_std = (
            torch.tensor(model.pretrained_cfg[key], device=parameter.device).view(3, 1, 1)
            for key in ("mean", "std")
        )
        mean, std = (
            torch.tensor(value, device=parameter.device).view(3, 1, 1)
            for value in (PIXEL_MEAN, PIXEL_STD)
        )
        self.factor, self.offset, self.dtype = (
            std / own_std,
            (mean - own_mean) / own_std,
            parameter.dtype,
        )

    def __call__(self, windows: Tensor) -> Tensor:
        inputs = windows.float() * self.factor + self.offset
        tokens = self.model.forward_features(inputs.to(self.dtype))[
            :, self.model.num_prefix_tokens :
        ]
        grid = self.model.patch_embed.dynamic_feat_size(windows.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, tuple(grid)).float()
