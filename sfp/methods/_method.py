"""What every method is: a callable from windows to dense features in the joint image-text space."""

from __future__ import annotations

import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfp.clip.clip import FrozenCLIP, unit
from sfp.clip.kernels import product
from sfp.clip.positions import RESIZES
from sfp.clip.trunk import Block, Hook
from sfp.errors import SFPError
from sfp.options import check_type
from sfp.outliers import DETECTORS, Purifier, build_detector
from sfp.outliers.repair import DIVISORS, EMPTY, FILLINGS
from sfp.registry import Registry

METHODS = Registry("method", "sfp.methods")
_NOTHING = object()
_said: set[str] = set()


@dataclass(frozen=True)
class Card:
    """What a method changes in CLIP, for tables."""

    paper: str = ""
    attention: str = "q-k"
    values: str = "last block's"
    layers: str = "L"
    residual: bool = True
    ffn: bool = True


@dataclass(kw_only=True, repr=False, eq=False)
class Method(ABC):
    """Base class. A new method is one file in this folder: a class that registers itself and defines ``tokens``.

    Its options are dataclass fields: ``sigma: float = 5.0`` in the class body is an option, checked and stored; what
    needs more is done in ``prepare``. Every method takes the options below, and those of its detector by their names.

    Attributes:
        card: what it changes.
        own_purify, own_pm, own_positional_resize: what the method was published with.
        own_detector_options: for each detector by name, the options that the method was published with.
        choices: what an option that names something may name; ``build_method`` checks it.
        trunk: the frozen CLIP's image trunk.
        purifier: detector and repair, None where purification is off.
    """

    clip: FrozenCLIP = field(kw_only=False)
    purify: bool | None = None  # whether outliers are repaired; as published, if None
    pm: str | None = None  # the detector; the method's own, if None
    purify_layers: Collection[int] | int | None = (
        None  # 1-based blocks after which purification acts; the method's own, if None
    )
    repair_empty: str = "keep"  # ``empty``,
    repair_divisor: str = "valid"  # ``divisor`` and
    repair_filling: str = "mean"  # ``filling`` of ``repair``
    repair_point: str = "block"  # or "attention", the stream before the MLP
    positional_resize: str | None = None  # see ``resize_positions``; the method's own, if None
    compiled: str | None = (
        None  # a mode of torch.compile for ``features``; "reduce-overhead" means CUDA graphs
    )
    detector_options: dict[str, Any] | None = None

    name: ClassVar[str]
    card: ClassVar[Card] = Card()
    own_purify: ClassVar[bool] = False
    own_pm: ClassVar[str] = "SOM"
    own_detector_options: ClassVar[dict[str, dict[str, Any]]] = {}
    own_positional_resize: ClassVar[str] = "scale"
    choices: ClassVar[dict[str, tuple]] = {
        "repair_empty": EMPTY,
        "repair_divisor": DIVISORS,
        "repair_filling": FILLINGS,
        "repair_point": ("block", "attention"),
        "positional_resize": (None, *RESIZES),
        "compiled": (None, "default", "reduce-overhead", "max-autotune"),
    }

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        dataclass(kw_only=True, repr=False, eq=False)(cls)

    def __post_init__(self):
        self.trunk = self.clip.trunk
        self._given = [
            f.name
            for f in fields(self)
            if f.name != "clip" and getattr(self, f.name) not in (f.default, None)
        ]
        self.purify = self.own_purify if self.purify is None else self.purify
        self.pm = self.own_pm if self.pm is None else self.pm
        self.positional_resize = self.positional_resize or self.own_positional_resize
        if self.purify_layers == [] and self.purify:
            raise SFPError(
                f"purify_layers of {self.name} is [], so nothing would be purified; name layers, or give purify=False."
            )
        layers = self.own_purify_layers() if self.purify_layers is None else self.purify_layers
        self.purify_layers = self.check_layers("purify_layers", layers)
        self.prepare()
        detector = build_detector(
            self.pm,
            **{**self.own_detector_options.get(self.pm, {}), **(self.detector_options or {})},
        )
        repair = dict(
            empty=self.repair_empty,
            divisor=self.repair_divisor,
            filling=self.repair_filling,
            point=self.repair_point,
        )
        self.purifier = Purifier(detector, self.purify_layers, **repair) if self.purify else None
        self._features = (
            torch.compile(self.features, mode=self.compiled) if self._compiles() else self.features
        )

    def _compiles(self) -> bool:
        on_cpu = self.compiled is not None and self.clip.device.type == "cpu"
        if on_cpu and not any(
            shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")
        ):
            raise SFPError(
                f"compiled={self.compiled!r} of {self.name} needs a C++ compiler on a CPU; install g++, or leave it out."
            )
        return self.compiled is not None

    def prepare(self) -> None:  # noqa: B027 - a method without options of its own has none to prepare
        """Check and complete the options; raises SFPError for a wrong one."""

    def own_purify_layers(self) -> Sequence[int]:
        """Layers at which purification acts unless it is told: 1..L-1."""
        return range(1, self.trunk.layers)

    def check_layers(
        self, option: str, layers: Collection[int] | int, last: int | None = None
    ) -> tuple[int, ...]:
        """Layers of an option as a tuple.

        Raises:
            SFPError: a layer is not in 1..last, which is L-1 if not given.
        """
        last = last or self.trunk.layers - 1
        layers = [layers] if isinstance(layers, int) else list(layers)
        for layer in layers:
            if not isinstance(layer, int) or not 1 <= layer <= last:
                raise SFPError(
                    f"{option} of {self.name} names layer {layer!r}; give layers from 1 to {last}."
                )
        return tuple(layers)

    def check_blocks(self, option: str, blocks: int, least: int = 0) -> int:
        """How many of the last blocks an option means, at most L; the option's own number is ``least`` more.

        Raises:
            SFPError: a negative count.
        """
        if blocks < 0:
            raise SFPError(
                f"{option} of {self.name} is {blocks + least}; give a count of at least {least}."
            )
        return min(blocks, self.trunk.layers)

    def constants(
        self, published: Mapping[str, Any] | None, of_twelve: Mapping[str, Any], **given: Any
    ) -> dict[str, Any]:
        """Constants that depend on the backbone: as given; else as published for it; else scaled by depth, said once.

        Args:
            published: what the source gives for this backbone, None where it gives nothing.
            of_twelve: the constants of 12 blocks; layers (int or tuples of int) are scaled to this depth.
            given: the user's, None for those not given.
        """
        depth = self.trunk.layers

        def scaled(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(scaled(v) for v in value)
            return (
                min(max(1, round(value * depth / 12)), depth - 1)
                if isinstance(value, int)
                else value
            )

        missing = [
            name for name in of_twelve if given.get(name) is None and name not in (published or {})
        ]
        found = {
            name: (published or {}).get(name, scaled(value)) for name, value in of_twelve.items()
        }
        if missing:
            chosen = ", ".join(f"{name}={found[name]}" for name in missing)
            backbone = f"ViTs of {depth} blocks with patch {self.trunk.patch}"
            message = f"{self.name} was published without constants for {backbone}; taking {chosen}, layers scaled by depth from 12 blocks."
            if message not in _said:
                _said.add(message)
                warnings.warn(message, stacklevel=2)
        return {**found, **{name: value for name, value in given.items() if value is not None}}

    def hooks(self, *more: Hook) -> list[Hook]:
        """The purifying hook, if purification is on, and then further ones, which see repaired tokens."""
        return [*([self.purifier.hook] if self.purifier else []), *more]

    def stream(self, windows: Tensor, *more: Hook, last: int | None = None) -> Tensor:
        """X^{L-1} (or X^last) of windows (B, 3, H, W), purified on the way where that is on: (B, 1 + N, C)."""
        last = self.trunk.layers - 1 if last is None else last
        return self.trunk.run(windows, self.hooks(*more), last, self.positional_resize)

    @property
    def last_block(self) -> Block:
        """Block L, which most methods replace."""
        return self.trunk.blocks[-1]

    @abstractmethod
    def tokens(self, windows: Tensor) -> Tensor:
        """Y, the last layer's patch tokens (B, N, C) before LN_post and projection."""

    def features(self, windows: Tensor) -> Tensor:
        """Y read out, (B, h, w, D)."""
        return self.trunk.readout(self.tokens(windows)).unflatten(
            1, self.trunk.grid_of(*windows.shape[-2:])
        )

    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> Tensor:
        """Dense features (B, h, w, D), projected, not normalised, of normalised windows (B, 3, H, W) float.

        Windows go through the trunk in groups of ``trunk.windows_at_once``; none knows of another.

        Raises:
            SFPError: windows of another shape, or smaller than a patch.
        """
        if not isinstance(windows, Tensor) or windows.ndim != 4:
            got = (
                f"{tuple(windows.shape)} {windows.dtype}"
                if hasattr(windows, "dtype")
                else type(windows).__name__
            )
            raise SFPError(
                f"Windows must be a float tensor (B, 3, H, W), got {got}; make one with the clip's normalise."
            )
        groups = windows.split(self.trunk.windows_at_once(*windows.shape[-2:]))
        return torch.cat([self._features(group.to(self.clip.device)) for group in groups])

    def see(self, windows: Tensor) -> Any:
        """What ``compare`` needs of windows, without any text: unit features (B, h, w, D) float32."""
        return unit(self(windows))

    def compare(self, seen: Any, text: Tensor) -> Tensor:
        """Scores of unit text vectors (Q, D): cosines S_{i,q} = <F_i, T_q>, (B, h, w, Q) float32.

        A method that does more with the text overrides it and ``see``, and may return a finer grid.
        """
        return product(seen, text.T)

    @torch.inference_mode()
    def scores(self, windows: Tensor, text: Tensor) -> Tensor:
        """Scores of text vectors on windows; several vocabularies can share what ``see`` made."""
        return self.compare(self.see(windows.to(self.clip.device)), text)

    def changed_options(self) -> dict[str, Any]:
        """The options that were given and are not as published, those of the detector included: for tables."""
        own = dict(
            purify=self.own_purify, pm=self.own_pm, purify_layers=tuple(self.own_purify_layers())
        )
        own["positional_resize"] = self.own_positional_resize
        now = self.options()
        changed = {name: now[name] for name in self._given if now[name] != own.get(name, _NOTHING)}
        detector = changed.pop("detector_options", None) or {}
        if self.purify:
            return {**changed, **detector}
        return {
            name: value for name, value in changed.items() if name not in ("pm", "purify_layers")
        }

    def options(self) -> dict[str, Any]:
        """Its options as they stand, for results: plain values, layers as they were chosen."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "clip"}
        return {
            name: getattr(value, "__name__", repr(value)) if callable(value) else value
            for name, value in values.items()
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.clip!r}, purifier={self.purifier.detector if self.purifier else None})"


def build_method(name: str, clip: FrozenCLIP, **options: Any) -> Method:
    """The method of that name on a frozen CLIP: ``method(windows)`` gives features (B, h, w, D).

    Options are the method's own, those of every method (``purify``, ``pm``, ``purify_layers`` ...) and those of its
    detector (``max_outliers``, ``cls_factor``, ``k`` ...).

    Raises:
        SFPError: unknown method, detector or option; the message offers the closest name.
    """
    own, of_detector = check_method(name, options)
    if not isinstance(clip, FrozenCLIP):
        raise SFPError(
            f"build_method got {clip!r} as clip; give the frozen CLIP that load_clip returns."
        )
    return METHODS.get(name)(clip, detector_options=of_detector, **own)


def check_method(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options as ``build_method`` takes them, parted into the method's and its detector's, before anything is loaded.

    Raises:
        SFPError: unknown method, detector or option, or a value of another type than the default's.
    """
    known = METHODS.options(name)
    pm = METHODS.get(name).own_pm if options.get("pm") is None else options["pm"]
    check_type("detector_options", options.get("detector_options"), dict | None)
    of_detector = dict(options.get("detector_options") or {})
    own = {key: value for key, value in options.items() if key != "detector_options"}
    for option in [key for key in own if key not in known and key in DETECTORS.options(pm)]:
        of_detector[option] = own.pop(option)
    METHODS.check_options(name, own)
    DETECTORS.check_options(pm, of_detector)
    return own, of_detector


def list_methods() -> list[str]:
    """Names of all methods."""
    return METHODS.names()
