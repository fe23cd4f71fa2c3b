"""``SFPSegmentor``: mmsegmentation's door to the pipeline."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from sfp.clip import load_clip
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.pipeline import Pipeline, Protocol, Task, Vocabulary
from sfp.result import palette_for


@MODELS.register_module()
class UnevenSegDataPreProcessor(SegDataPreProcessor):
    """mmseg's preprocessor for batches of images of different sizes: they stay a list, without padding."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalised images [(3, h, w), ...] and their data samples, on the model's device."""
        data = self.cast_data(data)
        images = [
            super(UnevenSegDataPreProcessor, self).forward({"inputs": [image]}, training)["inputs"][
                0
            ]
            for image in data["inputs"]
        ]
        return dict(inputs=images, data_samples=data.get("data_samples"))


@MODELS.register_module()
class SFPSegmentor(BaseSegmentor):
    """A frozen CLIP with a training-free dense method, as an mmseg segmentor for testing and inference.

    Args:
        clip: model name, see ``load_clip``.
        pretrained: tag or path of the weights; mmseg's ``init_model`` blanks this key, and then OpenAI's are taken.
        method: one of ``sfp.list_methods()``.
        name_path: names file, one class per line; ``names`` instead gives them as a list.
        name_separator: what stands between synonyms in a line.
        prompts, text_cache: see ``TextBank``.
        window, stride, logit_scale, prob_thd, area_thd, pamr_iterations, pamr_dilations: see ``Protocol``.
        windows_at_once: largest batch of windows, see ``Pipeline``.
        precision, device, weights_sha256: see ``load_clip``.
        method_options: options of the method, also taken as further keys (``purify``, ``pm``, ``sae_residual`` ...).
    """

    def __init__(
        self,
        clip: str = "ViT-B/16",
        pretrained: str | None = "openai",
        method: str = "SFP",
        *,
        name_path: str | os.PathLike | None = None,
        names: Sequence[str | Sequence[str]] | None = None,
        name_separator: str = ", ",
        prompts: str | Sequence[str] = "imagenet80",
        text_cache: str | bool | None = None,
        window: int = 224,
        stride: int = 112,
        logit_scale: float = 40.0,
        prob_thd: float = 0.0,
        area_thd: float | None = None,
        pamr_iterations: int = 0,
        pamr_dilations: Sequence[int] = (8, 16),
        windows_at_once: int | None = None,
        precision: str | None = None,
        device: str | None = None,
        weights_sha256: str | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        method_options: dict[str, Any] | None = None,
        **more_options: Any,
    ):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.vocabulary = read_vocabulary(
            dict(name_path=name_path, names=names, name_separator=name_separator)
        )
        protocol = Protocol(
            window, stride, logit_scale, prob_thd, area_thd, pamr_iterations, pamr_dilations
        )
        if pretrained is None and str(clip).lower() != "toyland":
            warnings.warn(
                f"model.pretrained is None, as mmseg's init_model sets it: OpenAI's weights of {clip} are taken.",
                stacklevel=2,
            )
        self.frozen = load_clip(
            clip,
            "openai" if pretrained is None else pretrained,
            device=device,
            precision=precision,
            weights_sha256=weights_sha256,
        )
        self.network = self.frozen.model  # a submodule, so that .to(device) moves it
        dense = build_method(method, self.frozen, **(method_options or {}), **more_options)
        self.pipeline = Pipeline(
            dense, TextBank(self.frozen, prompts, text_cache), protocol, windows_at_once
        )
        self.register_buffer("text", self.pipeline.embed_text(self.vocabulary), persistent=False)
        self.align_corners = False
        names = self.vocabulary.names
        self.dataset_meta = dict(classes=names, palette=palette_for(names).tolist())

    @property
    def task(self) -> Task:
        """What is asked of each image."""
        return Task(self.vocabulary, self.text, self.pipeline.protocol)

    @torch.inference_mode()
    def predict(
        self, inputs: Tensor | list[Tensor], data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Labels of preprocessed images (B, 3, h, w), or a list of them, as ``pred_sem_seg`` (1, H, W), at each image's original size.

        Windows of all these images share batches.
        """
        if data_samples is None:
            data_samples = [
                SegDataSample(metainfo=dict(ori_shape=inputs.shape[-2:])) for _ in inputs
            ]
        images = []
        for image, sample in zip(inputs, data_samples, strict=True):
            height, width = sample.metainfo.get("img_shape", image.shape[-2:])[:2]
            images.append(image[:, :height, :width])  # without the preprocessor's padding, if any
        sizes = [tuple(sample.metainfo["ori_shape"][:2]) for sample in data_samples]
        results = self.pipeline(images, self.vocabulary, self.text, sizes)
        for sample, (labels, _) in zip(data_samples, results, strict=True):
            sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})
        return data_samples

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Averaged cosines (B, Q, h, w)."""
        return torch.stack(
            [scores.canvas() for scores in self.pipeline.score(list(inputs), self.text)]
        )

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


def method_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a config's ``model`` says to the method: the keys that ``SFPSegmentor`` itself doesn't take."""
    own = {"type", *inspect.signature(SFPSegmentor.__init__).parameters}
    return {key: value for key, value in model.items() if key not in own} | dict(
        model.get("method_options") or {}
    )


def read_vocabulary(model: Mapping[str, Any]) -> Vocabulary:
    """The classes that a config's ``model`` names, by ``name_path`` or ``names``.

    Raises:
        SFPError: neither, both, or what ``Vocabulary`` refuses.
    """
    path, names = model.get("name_path"), model.get("names")
    if path is not None and names is not None:
        raise SFPError(
            f"model.names is {names!r}, but model.name_path={path} names the classes, too; set one of them to None."
        )
    if path is not None:
        return Vocabulary.from_file(path, model.get("name_separator", ", "))
    return Vocabulary.from_names(
        [] if names is None else names, "model.names (there is no model.name_path either)"
    )


def read_protocol(model: Mapping[str, Any]) -> Protocol:
    """What a config's ``model`` says of windows, thresholds and refinement.

    Raises:
        SFPError: what ``Protocol`` refuses.
    """
    return Protocol(**{key: model[key] for key in Protocol.__dataclass_fields__ if key in model})
