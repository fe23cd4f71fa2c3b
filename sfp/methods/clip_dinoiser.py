"""CLIP-DINOiser: MaskCLIP pooled by what DINO taught two convolutions (Wysoczanska et al., ECCV
2024).

"CLIP-DINOiser: Teaching CLIP a few DINO tricks for open-vocabulary semantic segmentation";
wysoczanska/clip_dinoiser, whose checkpoints/last.pt is of LAION-2B's ViT-B/16. DINO itself is not
run; the teacher, DINO's own values in the place of the first convolution, is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from sfp.backbones import Backbone, Positions, load_backbone
from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.kernels import layer_norm
from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.methods import METHODS, Changes
from sfp.methods._parts import cosine_similarity
from sfp.methods._pixels import pad_to_patches
from sfp.methods.maskclip import MaskCLIP
from sfp.options import Positive, Share
from sfp.stages import Text, View

_PUBLISHED = "checkpoints/last.pt of wysoczanska/clip_dinoiser"


@METHODS.register("CLIP-DINOiser")
class CLIPDINOiser(MaskCLIP):
    """F'_i = sum_j C_ij F_j / (sum_j C_ij + 1e-6), F MaskCLIP's features; C = o^T o, entries below
    gamma 0.

    o are unit outputs of a 3x3 convolution of a, the normalised FFN input of block L-2. Scores are
    probabilities p = softmax(scale <F', T>), which windows average. With ``background`` a patch
    whose best p is below delta and which the second convolution, 1x1 on unit a, calls no foreground
    (u <= 0) has p = 1 for the first query of class 0.

    Args:
        dinoiser: "convolutions", or the teacher: a timm ViT (``vit_base_patch16_224.dino``), whose
            last values are o, "colour", or a callable; see ``load_backbone``.
        dinoiser_weights: the file of the two convolutions; without one nothing can be made of
            windows. Of the teacher, a local file instead of timm's download.
        dinoiser_positions: how a timm ViT's positions are resized, see ``TimmViT``.
        gamma: gamma.
        background: whether there is a rule for the background, VOC21's and COCO-Object's.
        delta: delta.
        scale: of the cosines before the softmax.
    """

    dinoiser: str | Callable[[Tensor], Tensor] = "convolutions"
    dinoiser_weights: str | None = None
    dinoiser_positions: Positions = "auto"
    gamma: Share = 0.2
    background: bool = False
    delta: Share = 0.99
    scale: Positive = 100.0

    changes = Changes(
        "Wysoczanska et al., ECCV 2024",
        "identity; pooled by learned likeness",
        layers="L; reads L-2",
    )
    published = dict(positional_resize="size")

    def prepare(self) -> None:
        self._learned = self.dinoiser == "convolutions"
        if self.background and not self._learned:
            raise SFPError(
                f"background of {self.name} needs the second convolution, which"
                f" dinoiser={self.dinoiser} has not; leave one of them out."
            )
        if not self._learned:
            self.backbones["dinoiser"] = load_backbone(
                self.dinoiser,
                self.clip,
                "dinoiser",
                self.dinoiser_weights,
                reads="values",
                positions=self.dinoiser_positions,
            )
        elif self.dinoiser_weights is not None:
            found = Convolutions(Path(self.dinoiser_weights).expanduser(), self.clip)
            self.backbones["dinoiser"] = found.to(self.clip.device)

    def features(self, windows: Tensor) -> Tensor:
        """F' (B, h, w, D) float32."""
        return self.pooled(windows)[0]

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit F' of windows padded to CLIP's patch, and u (B, h, w) where there is a rule for the
        background.
        """
        pooled, a = self.pooled(pad_to_patches(self.clip, windows, self.trunk.patch))
        found = {"features": l2_normalise(pooled)}
        return {**found, "u": self._model.foreground(a)} if self.background else found

    def pooled(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """F' (B, h, w, D) and a (B, d, h, w), float32."""
        layer, kept, model = max(1, self.trunk.layers - 2), [], self._model
        norm, grid = self.trunk.blocks[layer - 1].norm_2, self.grid(windows)

        def keep(state: LayerState) -> None:
            patches = state.patches  # a block with its norms at the end has none here
            kept.append(patches.float() if norm is None else layer_norm(patches, norm))

        stream = self.stream(windows, Hook(keep, [layer], point="attention"))
        f = self.trunk.readout(self.unmixed(stream)[:, self.patch_rows(windows)]).float()
        (a,) = kept
        a = a.mT.unflatten(2, grid)
        if self._learned:
            maps = model(a)
        else:
            maps = model(pad_to_patches(self.clip, windows, model.patch or 1))
            if tuple(maps.shape[-2:]) != grid:
                maps = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
        c = cosine_similarity(maps.flatten(2).mT)
        c = c.masked_fill(c < self.gamma, 0)
        pooled = c @ f / (c.sum(-1, keepdim=True) + 1e-6)
        return pooled.unflatten(1, grid), a

    def score(self, view: View, text: Text) -> Tensor:
        """p (n, h, w, Q)."""
        p = (self.scale * self.cosines(view, text)).softmax(-1)
        if self.background:
            if text.class_of_query[0] != 0:
                raise SFPError(
                    f"background of {self.name} is on, but class 0 has no word; give it one, such"
                    " as 'background', or leave the option out."
                )
            p[..., 0].masked_fill_((p.amax(-1) < self.delta) & (view["u"] <= 0), 1.0)
        return p

    def cosines(self, view: View, text: Text) -> Tensor:
        """<F', T>, unit, (n, h, w, Q)."""
        return super().score(view, text)

    def decide(self, scores: Tensor, text: Text) -> Tensor:
        """Scores are probabilities."""
        return scores

    @property
    def _model(self) -> Backbone:
        if "dinoiser" not in self.backbones:
            raise SFPError(
                f"{self.name} has no file of its two convolutions; bring {_PUBLISHED} from"
                " elsewhere and name it in dinoiser_weights=FILE, or give dinoiser='colour'."
            )
        return self.backbones["dinoiser"]


class Convolutions(Backbone):
    """The two convolutions on a: the first, 3x3, is the map; the second is ``foreground``.

    Args:
        file: safetensors, or a PyTorch file with the key "model_state_dict"; entries
            "obj_proj.weight" (m, d, 3, 3), "bkg_decoder.weight" (1, d, 1, 1), and their biases.
        clip: whose width d must be.

    Raises:
        SFPError: no such file, or something else in it.
    """

    def __init__(self, file: Path, clip: FrozenCLIP):
        super().__init__(name="CLIP-DINOiser's convolutions")
        weights, width = _read(file), clip.trunk.width
        for name, size in (("obj_proj", 3), ("bkg_decoder", 1)):
            weight, bias = (weights.get(f"{name}.{part}") for part in ("weight", "bias"))
            if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
                raise SFPError(
                    f"{file} (dinoiser_weights) has no {name}.weight and {name}.bias; give"
                    f" {_PUBLISHED}, or a safetensors file of the same entries."
                )
            shape, first = tuple(weight.shape), "m" if size == 3 else 1
            fits = shape[1:] == (width, size, size) and shape[:1] == bias.shape
            fits = fits and (size == 3 or len(bias) == 1)
            if not fits:
                raise SFPError(
                    f"{name}.weight of {file} (dinoiser_weights) is {shape}, but with {clip.name}"
                    f" it must be ({first}, {width}, {size}, {size}); give weights that were"
                    " trained with this CLIP."
                )
            if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
                raise SFPError(
                    f"{name} of {file} (dinoiser_weights) has NaN or infinite numbers; get a sound"
                    " copy."
                )
            layer = nn.Conv2d(width, len(weight), size, padding=size // 2, padding_mode="replicate")
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.add_module(name, layer)
        self.eval().requires_grad_(False)

    def encode(self, a: Tensor) -> Tensor:
        """(B, m, h, w) of a (B, d, h, w)."""
        return self.obj_proj(a.to(self.obj_proj.weight.dtype))

    def foreground(self, a: Tensor) -> Tensor:
        """u (B, h, w) of a normalised per position; above 0 is foreground."""
        unit = F.normalize(a, dim=1).to(self.bkg_decoder.weight.dtype)
        return self.bkg_decoder(unit)[:, 0].float()


def _read(file: Path) -> dict[str, Any]:
    """The state dict of a file; raises SFPError where there is none or it can't be read."""
    if not file.is_file():
        raise SFPError(
            f"There is no file {file} (dinoiser_weights); bring {_PUBLISHED} from elsewhere and"
            " give its path."
        )
    try:
        if file.suffix == ".safetensors":
            found = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
        found = found.get("model_state_dict", found)
        return dict(found)
    except Exception as error:  # a damaged or malicious file makes readers raise anything
        refuse_want_of_memory(error, f"reading {file}")
        raise SFPError(
            f"{file} (dinoiser_weights) can't be read as weights ({type(error).__name__}); get"
            f" {_PUBLISHED} again, or save its two convolutions as .safetensors."
        ) from error
