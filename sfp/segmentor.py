"""``SFPSegmentor``: the pipeline as a segmentor of mmsegmentation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from sfp.clip import load_clip
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.methods import build_method, check_method
from sfp.pipeline import Pipeline, Protocol, Task, Vocabulary
from sfp.result import palette_for
from sfp.stages import Picture


@MODELS.register_module()
class UnevenSegDataPreProcessor(SegDataPreProcessor):
    """mmseg's preprocessor for batches of images of different sizes: a list, without padding."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalised images [(3, h, w), ...] and their data samples, on the model's device."""
        data = self.cast_data(data)
        images = []
        for image in data["inputs"]:
            images.append(super().forward({"inputs": [image]}, training)["inputs"][0])
        return dict(inputs=images, data_samples=data.get("data_samples"))


def pictures(inputs: Tensor | Sequence[Tensor], samples: Sequence[SegDataSample]) -> list[Picture]:
    """Preprocessed images (3, h, w) without the padding of the preprocessor, with their files."""
    found = []
    for image, sample in zip(inputs, samples, strict=True):
        height, width = sample.metainfo.get("img_shape", image.shape[-2:])[:2]
        path = sample.metainfo.get("img_path") or ""
        found.append(Picture(image[:, :height, :width], path=path))
    return found


@MODELS.register_module()
class SFPSegmentor(BaseSegmentor):
    """A frozen CLIP with a training-free dense method, for testing and inference in mmseg.

    Args:
        clip: model name, see ``load_clip``.
        pretrained: tag or path of the weights.
        weights: the same under a key that mmseg's ``init_model`` and ``MMSegInferencer`` leave
            alone: they take ``pretrained`` away, so that one of the two must be there. It wins
            where both are given.
        method: one of ``sfp.list_methods()``.
        name_path: names file, one class per line; ``names`` instead gives them as a list.
        name_separator: what stands between synonyms in a line.
        prompts, text_cache: see ``TextBank``.
        windows_at_once: largest batch of windows, see ``Pipeline``.
        device: where it stays, whatever it is moved to: mmengine's runner moves every model to the
            current GPU. If None it is made where ``load_clip`` makes it, and follows.
        precision, quick_gelu, head_width, pixel_mean, pixel_std, weights_sha256: see ``load_clip``.
        data_preprocessor: by default one with CLIP's mean and deviation.
        options: fields of ``Protocol`` (``window``, ``prob_thd``, ``refine`` ...) and options
            of the method (``purify``, ``pm``, ``sae_residual`` ...).
    """

    def __init__(
        self,
        clip: str = "ViT-B/16",
        pretrained: str | None = None,
        method: str = "SFP",
        *,
        weights: str | None = None,
        name_path: str | os.PathLike | None = None,
        names: Sequence[str | Sequence[str]] | None = None,
        name_separator: str = ", ",
        prompts: str | os.PathLike | Sequence[str] = "imagenet80",
        text_cache: str | bool | None = None,
        windows_at_once: int | None = None,
        precision: str | None = None,
        device: str | None = None,
        quick_gelu: bool | None = None,
        head_width: int | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        weights_sha256: str | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        **options: Any,
    ):
        vocabulary = Vocabulary.of_config(name_path, names, name_separator)
        protocol, options = Protocol.split(options)
        options = check_method(method, options, Protocol.options_beside(SFPSegmentor))
        if pretrained is None and weights is None:
            raise SFPError(
                "model.pretrained is None, or was taken away by mmseg's init_model or"
                " MMSegInferencer; name the weights in model.weights, such as weights='openai'."
            )
        unread = dict(init_cfg=init_cfg, train_cfg=train_cfg, test_cfg=test_cfg)
        if given := [key for key, value in unread.items() if value]:
            raise SFPError(
                f"model.{given[0]} is {unread[given[0]]!r}, which SFPSegmentor doesn't read;"
                " name weights in model.weights, windows in model.window and model.stride."
            )
        frozen = load_clip(
            clip,
            pretrained if weights is None else weights,
            device=device,
            precision=precision,
            quick_gelu=quick_gelu,
            head_width=head_width,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            weights_sha256=weights_sha256,
        )
        mean, std = ([255 * v for v in values] for values in (frozen.pixel_mean, frozen.pixel_std))
        usual = UnevenSegDataPreProcessor(mean=mean, std=std, bgr_to_rgb=True)
        super().__init__(data_preprocessor=data_preprocessor or usual)
        dense = build_method(method, frozen, **options)
        self.frozen, self.stays = frozen, device is not None
        # submodules, so that .to(device) moves them
        self.network, self.backbones = frozen.model, nn.ModuleDict(dense.backbones)
        bank = TextBank(frozen, prompts, text_cache)
        self.pipeline = Pipeline(dense, bank, protocol, windows_at_once)
        self.vocabulary = vocabulary
        self.task = Task(self.pipeline.encode_text(vocabulary), protocol)
        self.align_corners = False
        palette = palette_for(vocabulary.names).tolist()
        self.dataset_meta = dict(classes=vocabulary.names, palette=palette)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SFPSegmentor:
        """What ``to``, ``cuda`` and ``half`` change each weight by."""
        if self.stays and fn(torch.empty(0)).dtype == torch.float32:  # nothing but a move
            self.data_preprocessor._apply(fn, recurse)  # mmengine tells it the new device
            return self
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """What torch and mmengine load a checkpoint by.

        Raises:
            SFPError: always: results record the hash of the weights that it was made with.
        """
        raise SFPError(
            "SFPSegmentor takes no checkpoint (load_from, resume, or weights of MMSegInferencer and"
            " init_model); name the file of the CLIP's weights in model.weights."
        )

    @torch.inference_mode()
    def predict(
        self, inputs: Tensor | list[Tensor], data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Labels of preprocessed images (B, 3, h, w), or a list of them, at each one's original
        size.

        They are ``pred_sem_seg`` (1, H, W). Windows of all these images share batches.
        """
        if data_samples is None:
            shapes = [tuple(image.shape[-2:]) for image in inputs]
            data_samples = [SegDataSample(metainfo=dict(ori_shape=shape)) for shape in shapes]
        sizes = [tuple(sample.metainfo["ori_shape"][:2]) for sample in data_samples]
        (results,) = self.pipeline.segment(pictures(inputs, data_samples), [self.task], sizes)
        for sample, (labels, _) in zip(data_samples, results, strict=True):
            sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})
        return data_samples

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Averaged cosines (B, Q, h, w)."""
        views = zip(self.pipeline.views(list(inputs)), inputs, strict=True)
        maps = [
            self.pipeline.score(view, self.task.text, tuple(image.shape[-2:])).canvas()
            for view, image in views
        ]
        return torch.stack(maps)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Dense features (B, h, w, D) of whole inputs."""
        return self.pipeline.method(inputs)

    def encode_decode(self, inputs: Tensor, batch_data_samples: list[SegDataSample]) -> Tensor:
        """Averaged cosines (B, Q, h, w)."""
        return self._forward(inputs, batch_data_samples)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict:
        """There is none.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "SFPSegmentor is frozen: it has no loss and can't be trained; use tools/test.py."
        )
