"""SAM (Kirillov et al., ICCV 2023) by transformers: the last attention, and masks by prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sfp.backbones._backbone import Backbone
from sfp.backbones.colour import mean_colours
from sfp.backbones.sam_files import SAM_BASE, find_files, read_model, require_transformers
from sfp.clip.clip import l2_normalise, weights_sha256
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.transfer import exact_convolutions

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1], ImageNet's
_REGIONS_AT_ONCE = 16  # of the mask decoder: 64 x 64 places of 256 channels for each
_loaded: WeakValueDictionary[tuple, Sam] = WeakValueDictionary()


@dataclass(frozen=True)
class SamAttention:
    """The last attention of SAM's image encoder on the part of its grid that holds the picture.

    Attributes:
        grid: (m_h, m_w); M = m_h m_w.
        values: u_h with bias, (heads, M, d_h) float32.
        maps: P_h of each head, (M, M) float32, one after another: softmax over the whole grid,
            padding too, cut to the picture's part without dividing again. A real SAM makes each
            when it is asked for, once.
    """

    grid: tuple[int, int]
    values: Tensor
    maps: Iterable[Tensor]


class Sam(Backbone):
    """A SAM of transformers, frozen. Its pictures are (H, W, 3) uint8 RGB.

    Attributes:
        side: of the square that a picture is resized into, 1024.
        patch: of the image encoder, 16.
        prompt_side: of mask prompts and of the decoder's masks, 256.

    Raises:
        SFPError: a model whose last block has no global attention.
    """

    def __init__(self, model: nn.Module, name: str = SAM_BASE):
        super().__init__(name=name)
        self.model = model.eval().requires_grad_(False)
        vision = model.config.vision_config
        self.side, self.patch, self.heads = (
            vision.image_size,
            vision.patch_size,
            vision.num_attention_heads,
        )
        self.prompt_side = 4 * (self.side // self.patch)
        if vision.num_hidden_layers - 1 not in vision.global_attn_indexes:
            raise SFPError(
                f"The last block of the SAM {name} attends within windows; give one whose last"
                f" block attends to the whole picture, such as {SAM_BASE}."
            )
        self._fingerprint = weights_sha256(model)  # as loaded, before any rounding

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __repr__(self) -> str:
        return f"Sam({self.name!r})"

    def encode(self, windows: Tensor) -> Tensor:
        """There is no map of windows.

        Raises:
            SFPError: always.
        """
        raise SFPError(
            f"{self.name} is a SAM, which sees whole pictures; as a map of windows give a timm"
            " ViT's name or 'colour'."
        )

    @torch.inference_mode()
    @exact_convolutions()
    def see(self, pixels: np.ndarray) -> SamImage:
        """A picture (H, W, 3) uint8 RGB through all blocks but the last."""
        size = sized(*pixels.shape[:2], self.side)
        resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
        encoder = self.model.vision_encoder
        weight = encoder.patch_embed.projection.weight
        planes = torch.from_numpy(np.array(resized)).to(weight.device).permute(2, 0, 1)
        mean, std = (torch.tensor(v, device=weight.device).view(3, 1, 1) for v in (_MEAN, _STD))
        planes = (planes.float() / 255 - mean) / std
        padded = F.pad(planes, (0, self.side - size[1], 0, self.side - size[0]))
        stream = encoder.patch_embed(padded[None].to(weight.dtype))
        if encoder.pos_embed is not None:
            stream = stream + encoder.pos_embed
        for layer in encoder.layers[:-1]:
            stream = _output(layer(stream))
        return SamImage(self, stream, size)

    @torch.inference_mode()
    @exact_convolutions()
    def masks(
        self, seen: SamImage, points: Tensor, boxes: Tensor, prompt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One mask for each of R regions, in one call of the decoder.

        Args:
            seen: the picture.
            points: (R, 2), x and y within ``side`` of a point inside each region.
            boxes: (R, 4), x0, y0, x1, y1 likewise.
            prompt: a mask prompt for all of them, (prompt_side, prompt_side).

        Returns:
            Logits (R, prompt_side, prompt_side) and predicted IoU (R,), float32.
        """
        dtype = self.model.mask_decoder.iou_token.weight.dtype
        logits, quality = [], []
        for at, around in zip(
            points.split(_REGIONS_AT_ONCE), boxes.split(_REGIONS_AT_ONCE), strict=True
        ):
            found = self.model(
                image_embeddings=seen.embedding.to(dtype),
                input_points=at[None, :, None].to(dtype),
                input_labels=torch.ones(1, len(at), 1, dtype=torch.int, device=at.device),
                input_boxes=around[None].to(dtype),
                input_masks=prompt[None, None].to(dtype),
                multimask_output=False,
            )
            logits.append(found.pred_masks[0, :, 0].float())
            quality.append(found.iou_scores[0, :, 0].float())
        return torch.cat(logits), torch.cat(quality)

    @classmethod
    def load(cls, name: str, option: str, weights: str | None, dtype: torch.dtype) -> Sam:
        """See ``load_sam``; files that are in use already are not read again."""
        require_transformers(option)
        config, file = find_files(name, option, weights)
        stat = file.stat()
        key = (file.resolve(), stat.st_mtime_ns, stat.st_size, dtype)
        if (known := _loaded.get(key)) is None:
            try:
                known = cls(read_model(config, file, option), name).to(dtype)
            except Exception as error:  # transformers', safetensors' and torch's: no common base
                refuse_want_of_memory(error, f"loading {file}")
                if isinstance(error, SFPError):
                    raise
                reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
                raise SFPError(
                    f"{file} ({option}) can't be read as a SAM ({reason}); give a folder or file of"
                    f" a SAM, such as {SAM_BASE}."
                ) from error
            _loaded[key] = known
        return known


class SamImage:
    """A picture as SAM saw it.

    Attributes:
        sam: which saw it.
        stream: input of the encoder's last block, (1, g, g, C).
        size: (h, w) of the resized picture, at the upper left of the square.
    """

    def __init__(self, sam: Sam, stream: Tensor, size: tuple[int, int]):
        self.sam, self.stream, self.size = sam, stream, size

    @property
    def grid(self) -> tuple[int, int]:
        """(m_h, m_w), the cells that lie in the picture as a whole; at least one each way."""
        return tuple(max(1, side // self.sam.patch) for side in self.size)

    @functools.cached_property
    def embedding(self) -> Tensor:
        """What the mask decoder sees, (1, 256, g, g)."""
        encoder = self.sam.model.vision_encoder
        with torch.inference_mode(), exact_convolutions():
            return encoder.neck(_output(encoder.layers[-1](self.stream)))

    @torch.inference_mode()
    def attention(self) -> SamAttention:
        """The last block's, made head by head.

        Raises:
            SFPError: NaN or infinite numbers.
        """
        block = self.sam.model.vision_encoder.layers[-1]
        cells = self.stream.shape[1]
        qkv = block.attn.qkv(block.layer_norm1(self.stream)).float()
        q, k, v = qkv.view(cells, cells, 3, self.sam.heads, -1).permute(2, 3, 0, 1, 4)
        if not bool(torch.isfinite(qkv).all()):
            raise SFPError(
                f"The attention of {self.sam.name} is NaN or infinite; give precision='fp32' or"
                " 'bf16' (config: model.precision)."
            )
        height, width = self.grid
        return SamAttention(
            self.grid, v[:, :height, :width].flatten(1, 2), self._maps(q[:, :height, :width], k)
        )

    @torch.inference_mode()
    def _maps(self, q: Tensor, k: Tensor) -> Iterator[Tensor]:
        """P_h of queries (heads, m_h, m_w, d_h) and keys (heads, g, g, d_h)."""
        attn, cells = self.sam.model.vision_encoder.layers[-1].attn, k.shape[1]
        (height, width), scale = self.grid, q.shape[-1] ** -0.5
        if attn.use_rel_pos:  # row i - k + g - 1 is that of query i and key k
            steps = torch.arange(cells, device=q.device)
            offsets = steps[:, None] - steps + cells - 1
            down, across = (
                places.float()[offsets[:side]]
                for places, side in ((attn.rel_pos_h, height), (attn.rel_pos_w, width))
            )
        for q_h, k_h in zip(q, k, strict=True):
            logits = (q_h.flatten(0, 1) * scale) @ k_h.flatten(0, 1).T
            logits = logits.view(height, width, cells, cells)
            if attn.use_rel_pos:
                logits += torch.einsum("ijc,ikc->ijk", q_h, down)[..., None]
                logits += torch.einsum("ijc,jkc->ijk", q_h, across)[..., None, :]
            logits = logits.sub_(logits.amax((2, 3), keepdim=True)).exp_()
            logits /= logits.sum((2, 3), keepdim=True)
            yield logits[..., :height, :width].reshape(height * width, height * width)

    def enlarged(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """The decoder's masks (R, s, s) at a size (H, W) of the picture, as SAM enlarges them."""
        square = (self.sam.side, self.sam.side)
        whole = F.interpolate(logits[None], square, mode="bilinear", align_corners=False)
        cut = whole[..., : self.size[0], : self.size[1]]
        return F.interpolate(cut, size, mode="bilinear", align_corners=False)[0]


class SamStandIn(Backbone):
    """A callable in SAM's place: from a picture (H, W, 3) uint8 RGB to ``SamAttention``. It decodes
    no masks.
    """

    def see(self, pixels: np.ndarray) -> SamStandInImage:
        """The picture, for the callable."""
        return SamStandInImage(self.function, pixels)


@dataclass(frozen=True)
class SamStandInImage:
    """A picture that a callable sees when it is asked for."""

    function: Callable[[np.ndarray], SamAttention]
    pixels: np.ndarray

    def attention(self) -> SamAttention:
        return self.function(self.pixels)


def colour_attention(pixels: np.ndarray) -> SamAttention:
    """Plain colours in SAM's place, one head on SAM's grid: mean colours are the values, and cells
    attend to those of like colour. Needs no weights.
    """
    size = sized(*pixels.shape[:2], 1024)
    grid = tuple(max(1, side // 16) for side in size)
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    values = mean_colours(planes, grid).flatten(2).mT
    unit = l2_normalise(values)[0]
    return SamAttention(grid, values, [(10 * unit @ unit.T).softmax(-1)])


def load_sam(
    model: str | Callable[[np.ndarray], SamAttention] | Backbone,
    option: str,
    weights: str | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """A frozen SAM, on a device, or where it is if None. Who loads the same files gets the same.

    Args:
        model: a name on Hugging Face, facebook/sam-vit-base; a folder with config.json and
            model.safetensors; a .safetensors or .pth file; "colour", which needs no weights; or a
            callable from a picture to ``SamAttention``.
        option: the option that names it, for errors; its weights are ``option_weights``.
        weights: a local file or folder instead of the download.

    Raises:
        SFPError: transformers is missing, an unknown name, another kind of model, or weights that
            can't be had.
    """
    if not isinstance(model, Backbone) and callable(model):
        return SamStandIn(model)
    if model == "colour":
        return SamStandIn(colour_attention, model)
    found = model if isinstance(model, Backbone) else Sam.load(model, option, weights, dtype)
    return found if device is None else found.to(device)


def sized(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(h, w) of a picture with that long side, as SAM rounds it."""
    factor = long_side / max(height, width)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _output(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a block of transformers returns, which was a tuple before its version 5."""
    return found[0] if isinstance(found, tuple) else found
