"""SAM 2's automatic masks, through transformers (Ravi et al., 2024).

CorrCLIP's masks are made by it: 8 points a side, IoU and stability 0.4, one mask a point
(zdk258/CorrCLIP); its paper's tables have 32 points, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pycocotools import mask as coco_mask

from sfp.errors import SFPError, refuse_want_of_memory
from sfp.network import cached_hub_file, hub_file
from sfp.options import Range, Share
from sfp.regions._program import PROGRAMS, MaskProgram
from sfp.regions.regions import Regions
from sfp.transfer import exact_convolutions

_WEIGHTS = "model.safetensors"


@PROGRAMS.register("sam2")
class Sam2Masks(MaskProgram):
    """Masks of a grid of points, in float32: unsure, unstable and double ones dropped.

    In the order of their areas, the smallest first. Needs the extra ``vision``.

    Args:
        model: a SAM 2 on Hugging Face, or a folder with its config.json and model.safetensors.
        points: so many a side of the picture.
        iou: masks that the model thinks are no better are dropped.
        stability: and those whose IoU is no larger between the thresholds -1 and 1.
        overlap: of two masks whose boxes have a larger IoU the one is dropped that the model thinks
            the worse.
        multimask: three masks a point instead of one.
        points_at_once: how many go through the model as one batch.
    """

    model: str = "facebook/sam2.1-hiera-large"
    points: Annotated[int, Range(1)] = 8
    iou: Share = 0.4
    stability: Share = 0.4
    overlap: Share = 0.7
    multimask: bool = False
    points_at_once: Annotated[int, Range(1)] = 64

    of_speed: ClassVar[frozenset[str]] = frozenset({"points_at_once", "model"})

    def __post_init__(self):
        self.network, self.processor = _load(self.model)
        self.network.eval().requires_grad_(False).to(self.clip.device)

    @property
    def precision(self) -> str:
        return "fp32"

    @torch.inference_mode()
    @exact_convolutions()
    def __call__(self, pixels: np.ndarray) -> Regions:
        pixels = pixels.copy()  # torch wants it writable
        device, processor, size = self.clip.device, self.processor, pixels.shape[:2]
        # in the square that the picture is squeezed to; transformers' generate_crop_boxes places
        # them as for SAM 1, whose square is padded, so that a wide picture's bottom has none
        side = processor.size["height"]
        centres = (torch.arange(self.points, device=device) + 0.5) * side / self.points
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        points = torch.stack([x, y], -1).view(1, -1, 1, 2)
        box = torch.tensor([0.0, 0.0, size[1], size[0]], device=device)
        inputs = processor(images=pixels, return_tensors="pt")["pixel_values"].to(device)
        embeddings = self.network.get_image_embeddings(inputs)
        runs: list[dict] = []
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for first in range(0, points.shape[1], self.points_at_once):
            some = slice(first, first + self.points_at_once)
            out = self.network(
                input_points=points[:, some],
                image_embeddings=list(embeddings),
                multimask_output=self.multimask,
            )
            (masks,) = processor.post_process_masks(out.pred_masks, [size], binarize=False)
            few, scores, places = processor.filter_masks(
                masks, out.iou_scores[0], size, box, self.iou, self.stability
            )
            runs += few
            found.append((scores, places))
        if not runs:
            return Regions(size)
        scores, places = (torch.cat(own) for own in zip(*found, strict=True))
        *_, kept, _ = processor.post_process_for_mask_generation(
            runs, scores, places.float(), self.overlap
        )
        every = Regions.of_runs(size, [coco_mask.frPyObjects(one, *size) for one in kept])
        order = np.argsort(every.areas, kind="stable")
        return Regions(size, tuple(every.runs[place] for place in order))

    @classmethod
    def weight_files(cls, options: Mapping[str, Any]) -> dict[str, Path]:
        file = _file_of(options["model"])
        return {"model": file} if file else {}


def _file_of(model: str) -> Path | None:
    """The weights in a folder, or of a model in the hub's cache; None where they aren't here."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / _WEIGHTS if (folder / _WEIGHTS).is_file() else None
    if model.startswith(("/", ".", "~")):
        return None
    return cached_hub_file(model, _WEIGHTS)


def _load(model: str) -> tuple[Any, Any]:
    """The network and what prepares its pictures.

    Raises:
        SFPError: transformers is not installed, the weights can't be had, or they are another
            model's.
    """
    try:
        from transformers import Sam2Config, Sam2Model
        from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor
    except ImportError as error:
        raise SFPError(
            f"The mask program sam2 needs transformers ({error}); install the extra:"
            " pip install 'sfp-ovss[vision]'."
        ) from error
    hint = f"bring config.json and {_WEIGHTS} and name their folder as model=FOLDER"
    source = Path(model).expanduser()
    if source.is_dir():
        if _file_of(model) is None:
            raise SFPError(f"The folder {model} of a SAM 2 has no {_WEIGHTS}; {hint}.")
    elif model.startswith(("/", ".", "~")):
        raise SFPError(f"There is no folder {model} of a SAM 2; {hint}.")
    else:
        what, advice = f"The weights of SAM 2 {model!r}", f"{hint}, or give masks of your own"
        files = [hub_file(model, name, what, advice) for name in ("config.json", _WEIGHTS)]
        if None in files:
            raise SFPError(f"{model} has no config.json and {_WEIGHTS}; {advice}.")
        source = files[1].parent
    try:
        config = Sam2Config.from_pretrained(source)
        network, told = Sam2Model.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # the hub's, safetensors' and torch's errors have no common base
        refuse_want_of_memory(error, f"loading SAM 2 {model}")
        reason = str(error).strip().split("\n")[0][:160]
        raise SFPError(f"SAM 2 {model!r} can't be loaded ({reason}); {hint}.") from error
    if missing := sorted(told["missing_keys"]):
        raise SFPError(
            f"{model!r} is no SAM 2: {len(missing)} weights such as {missing[0]} are missing;"
            f" {hint}."
        )
    height, width = network.config.vision_config.backbone_config.image_size
    return network, Sam2ImageProcessor(size=dict(height=height, width=width))
