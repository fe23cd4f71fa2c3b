"""What every method is: windows to dense features, and features with text to scores."""

from __future__ import annotations

import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sfp.clip.block import Block
from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.kernels import linear
from sfp.clip.positions import Resize
from sfp.clip.registers import Registers
from sfp.clip.trunk import Hook, caching_hook
from sfp.errors import SFPError
from sfp.options import Count, parse_spec
from sfp.outliers import DETECTORS, Purifier, build_detector, require_class_token
from sfp.outliers.repair import Divisor, Empty, Filling
from sfp.registry import Registered, Registry
from sfp.stages import Picture, Text, View
from sfp.transfer import to_device

METHODS = Registry("method", "sfp.methods")
PUBLISHED = dict(purify=False, pm="SOM", purify_layers=None, positional_resize="scale")
_warned: set[str] = set()
_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that make CUDA graphs


@dataclass(frozen=True)
class Changes:
    """What a method changes in CLIP, for tables."""

    paper: str = ""
    attention: str = "q-k"
    values: str = "last block's"
    layers: str = "L"
    residual: bool = True
    ffn: bool = True


class Method(Registered, ABC):
    """Base class. A new method is one file here: a class that registers itself and defines
    ``tokens``.

    Annotated attributes of the class body are its options, checked and stored: ``sigma: float =
    5.0``. What needs more is done in ``prepare``. Stages: ``look`` knows the whole image;
    ``encode`` knows windows, the ``part`` of each in what ``look`` saw, and no text; ``score``,
    ``refine_pixels``, ``refine`` and ``relabel`` know one image's ``View``, and all but the last
    the ``Text``.

    Args:
        clip: the frozen CLIP.
        purify: whether outliers are repaired; as published, if None.
        pm: the detector, a name or ``dict(type=NAME, OPTION=VALUE)``; as published, if None.
        purify_layers: 1-based blocks after which purification acts, -2 is L-1; as published, if
            None: 1 to L-1 in most methods.
        repair_empty, repair_divisor, repair_filling: ``empty``, ``divisor``, ``filling`` of
            ``repair``.
        repair_point: "block", its output, or "attention", the stream before the MLP.
        positional_resize: see ``resize_positions``; as published, if None.
        registers: how many test-time registers, or a dict of ``Registers``' options with their
            "count".
        compiled: a mode of torch.compile; "reduce-overhead" and "max-autotune" mean CUDA graphs.

    Attributes:
        changes: what it changes in CLIP.
        joins_windows: whether ``score`` returns one map of the whole image.
        softmaxed: whether ``score`` returns probabilities of a softmax over the queries.
        whole_images: whether it takes whole images alone, ``window=0``.
        needs_class_token: whether it reads the class token, so that towers without one are refused;
            ``prepare`` may change it where options decide.
        published: the options of every method, as its authors have them; ``PUBLISHED`` where they
            follow none of their own.
        trunk: the frozen CLIP's image trunk.
        purifier: detector and repair, None where purification is off.
        appended: the test-time registers, None without any.
        observers: hooks that whoever wraps the method adds, after its own.
        backbones: further frozen models by what they are for, set in ``prepare``.
    """

    clip: FrozenCLIP = field(kw_only=False)
    purify: bool | None = None
    pm: str | Mapping[str, Any] | None = None
    purify_layers: Collection[int] | int | None = None
    repair_empty: Empty = "keep"
    repair_divisor: Divisor = "valid"
    repair_filling: Filling = "mean"
    repair_point: Literal["block", "attention"] = "block"
    positional_resize: Resize | None = None
    registers: Count | Mapping[str, Any] = 0
    compiled: Literal["default", "reduce-overhead", "max-autotune"] | None = None

    changes: ClassVar[Changes] = Changes()
    joins_windows: ClassVar[bool] = False
    softmaxed: ClassVar[bool] = False
    whole_images: ClassVar[bool] = False
    needs_class_token: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self):
        self.trunk, self.backbones = self.clip.trunk, {}
        self.appended = Registers.of_option(self.registers, self.clip)
        self.observers: list[Hook] = []
        self._standard = {f.name: f.default for f in fields(self) if f.kw_only}
        self.fill(**{**PUBLISHED, **self.published})
        self.pm, self.detector_options = parse_spec(self.pm)
        if self.purify_layers == [] and self.purify:
            raise SFPError(
                f"purify_layers of {self.name} is [], so nothing would be purified;"
                " name layers, or give purify=False."
            )
        every = range(1, self.trunk.layers)
        for options in (self._standard, vars(self)):
            layers = options["purify_layers"]
            layers = every if layers is None else layers
            options["purify_layers"] = self.check_layers("purify_layers", layers)
        self.detector_published: dict[str, dict[str, Any]] = {}
        self.prepare()
        self._require_class_token()
        published = self.detector_published.get(self.pm, {})
        detector = build_detector(self.pm, **{**published, **self.detector_options})
        repair = dict(
            empty=self.repair_empty, divisor=self.repair_divisor, filling=self.repair_filling
        )
        layers, point = self.purify_layers, self.repair_point
        if self.purify:
            require_class_token(detector, self.trunk.class_token, self.clip.name)
        self.purifier = Purifier(detector, layers, point=point, **repair) if self.purify else None
        self._compile()

    @classmethod
    def check_given(cls, given: Mapping[str, Any]) -> None:
        """Raises SFPError for options as given that are wrong, before anything is loaded."""

    def prepare(self) -> None:
        """Check and complete the options; raises SFPError for a wrong one."""

    def fill(self, **values: Any) -> None:
        """Give options that are None these values, which count as the published ones."""
        for name, value in values.items():
            self._standard[name] = value
            if getattr(self, name) is None:
                setattr(self, name, value)

    def fill_constants(self, of_twelve: Mapping[str, Any], published: Mapping | None) -> None:
        """``fill`` by constants that depend on the backbone; where scaled by depth, with a warning.

        Args:
            of_twelve: the constants of 12 blocks; layers (int or tuples of int) are scaled to L.
            published: what the source gives for this backbone, None where it gives nothing.
        """
        depth = self.trunk.layers

        def scaled(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(scaled(v) for v in value)
            if not isinstance(value, int):
                return value
            return min(max(1, round(value * depth / 12)), depth - 1)

        found = {name: scaled(value) for name, value in of_twelve.items()} | dict(published or {})
        scaled_ones = [
            name
            for name in of_twelve
            if getattr(self, name) is None and name not in (published or {})
        ]
        self.fill(**found)
        if scaled_ones:
            chosen = ", ".join(f"{name}={found[name]}" for name in scaled_ones)
            warn_once(
                f"{self.name} was published without constants for ViTs of {depth} blocks with patch"
                f" {self.trunk.patch}; taking {chosen}, layers scaled by depth from 12 blocks."
            )

    def check_layers(
        self, option: str, layers: Collection[int] | int, last: int | None = None
    ) -> tuple[int, ...]:
        """Layers of an option as a tuple; -1 is L, -2 is L-1 and so on.

        Raises:
            SFPError: a layer is not in 1..last, which is L-1 if not given.
        """
        last = last or self.trunk.layers - 1
        found = []
        for layer in [layers] if isinstance(layers, int) else layers:
            own = layer + self.trunk.layers + 1 if layer < 0 else layer
            if not 1 <= own <= last:
                raise SFPError(
                    f"{option} of {self.name} names layer {layer!r}; give layers from 1 to {last}."
                )
            found.append(own)
        return tuple(found)

    def check_blocks(self, option: str, count: int, of: int) -> int:
        """How many of the last blocks an option means.

        Raises:
            SFPError: fewer than 0, or more than L.
        """
        if not 0 <= count <= self.trunk.layers:
            raise SFPError(
                f"{option} of {self.name} is {of}, which would be {count} blocks;"
                f" this model has {self.trunk.layers}."
            )
        return count

    def _require_class_token(self) -> None:
        """Raises SFPError where the method reads a class token that the tower does not have."""
        if self.needs_class_token and not self.trunk.class_token:
            free = [name for name in METHODS.names() if not METHODS.get(name).needs_class_token]
            raise SFPError(
                f"{self.name} reads the class token, and the image tower of {self.clip.name} has"
                f" none; give one of {', '.join(free)}."
            )

    def _compile(self) -> None:
        compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
        on_cpu = self.compiled is not None and self.clip.device.type == "cpu"
        if on_cpu and not any(shutil.which(name) for name in compilers):
            raise SFPError(
                f"compiled={self.compiled!r} of {self.name} needs a C++ compiler on a CPU;"
                " install g++, or leave it out."
            )
        if self.compiled is not None:
            self.features = torch.compile(self.features, mode=self.compiled)
            self.encode = torch.compile(self.encode, mode=self.compiled)

    # ------------------------------------------------------------------ the trunk, for methods
    def hooks(self, *more: Hook) -> list[Hook]:
        """Those of registers and purification, if they are on, then further ones, which get
        repaired tokens.
        """
        own = [part.hook for part in (self.appended, self.purifier) if part]
        return [*own, *self.observers, *more]

    def stream(self, windows: Tensor, *more: Hook, last: int | None = None) -> Tensor:
        """X^{L-1} (or X^last) of windows (B, 3, H, W), purified where that is on: (B, T, C).

        P tokens before the patches (the class token, where there is one), N patches in
        ``patch_rows``, registers where there are any.
        """
        last = self.trunk.layers - 1 if last is None else last
        registers = self.appended.count if self.appended else 0
        return self.trunk.run(windows, self.hooks(*more), last, self.positional_resize, registers)

    def run_with_cache(
        self, windows: Tensor, *more: Hook, **layers: Collection[int]
    ) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
        """``stream``, and parts of layer states: ``k=[7]`` keeps ``cache["k", 7]``."""
        hook, cache = caching_hook(**layers)
        return self.stream(windows, hook, *more), cache

    def grid(self, windows: Tensor) -> tuple[int, int]:
        """Patch grid (h, w) of windows."""
        return self.trunk.grid_of(*windows.shape[-2:])

    def patch_rows(self, windows: Tensor) -> slice:
        """The patches' rows among the tokens of windows, P to P + N - 1; P is 1 in most towers."""
        return self.trunk.rows(self.grid(windows))

    @property
    def last_block(self) -> Block:
        """Block L, which most methods replace."""
        return self.trunk.blocks[-1]

    # ------------------------------------------------------------------ stages
    @abstractmethod
    def tokens(self, windows: Tensor) -> Tensor:
        """Y, the last layer's patch tokens (B, N, C) before LN_post and projection."""

    def features(self, windows: Tensor) -> Tensor:
        """Y read out, (B, h, w, D)."""
        return self.trunk.readout(self.tokens(windows)).unflatten(1, self.grid(windows))

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """What ``score`` needs of windows (B, 3, H, W), the first axis of each tensor is B.

        By default unit "features" (B, h, w, D) float32. Windows of several images share a batch. A
        method with ``part`` gets the windows' parts (B, ...) as a second argument.
        """
        return {"features": l2_normalise(self.features(windows))}

    def fit(self, size: tuple[int, int], window: int, stride: int) -> tuple[int, int]:
        """(h, w) to which an image of a size is resized before windows are cut; by default its own.

        Raises:
            SFPError: the method can't take such windows.
        """
        return size

    def look(self, picture: Picture) -> Any:
        """What the other stages need of a whole image, once an image; by default nothing."""

    def part(self, looked: Any, box: Sequence[int]) -> Tensor:
        """What of an image as ``look`` saw it belongs to a window, for ``encode``: of one shape in
        windows of one size. Only for methods that need it; ``box`` is top, left, bottom, right.

        Raises:
            NotImplementedError: the method has none.
        """
        raise NotImplementedError

    def score(self, view: View, text: Text) -> Tensor:
        """Scores of the windows of one image, (n, h, w, Q) float32, on any grid.

        By default cosines S_{i,q} = <F_i, T_q>. A method that joins the windows of an image
        (``joins_windows``) returns (h, w, Q) of the whole image instead, which goes bilinear
        straight to the label map's size.
        """
        return linear(view["features"], text.vectors)

    def cosines(self, view: View, text: Text) -> Tensor:
        """What ``score`` makes its scores of, for methods that wrap this one; by default these."""
        return self.score(view, text)

    def refine_pixels(self, scores: Tensor, view: View, text: Text) -> Tensor:
        """Stitched scores (Q, H, W) at the pixels that the windows slide over, refined before they
        are resized; by default as they are.
        """
        return scores

    def refines_pixels(self, text: Text) -> bool:
        """Whether ``refine_pixels`` does something; what it gets takes memory."""
        return self.defines("refine_pixels")

    def refine(self, scores: Tensor, view: View, text: Text) -> Tensor:
        """Stitched scores (Q, H, W) of one image, refined; by default as they are."""
        return scores

    def decide(self, scores: Tensor, text: Text) -> Tensor:
        """Of refined scores of pixels (..., Q) what stands in the place of their probabilities.

        Only for a method with a decision rule of its own; by default the pipeline takes a softmax.

        Raises:
            NotImplementedError: the method has none.
        """
        raise NotImplementedError

    def relabel(self, labels: Tensor, view: View) -> Tensor:
        """Labels (H, W) of one image, put right by what is known of it; by default as they are."""
        return labels

    @classmethod
    def defines(cls, stage: str) -> bool:
        """Whether the method has a stage of its own, so that it has to be called."""
        return getattr(cls, stage) is not getattr(Method, stage)

    # ------------------------------------------------------------------ calls
    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> Tensor:
        """Dense features (B, h, w, D), projected, not normalised, of normalised windows (B, 3, H,
        W).

        Windows go through the trunk in groups of ``trunk.windows_at_once``; none knows of another.

        Raises:
            SFPError: windows of another shape, or smaller than a patch.
        """
        found = []
        for some in self._groups(windows):
            self._begin()
            found.append(self._free(self.features(some)))
        return torch.cat(found)

    @torch.inference_mode()
    def run(self, windows: Tensor, parts: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """``encode`` of windows, and of the ``part`` of each, in groups, as ``__call__``."""
        groups, first = [], 0
        for some in self._groups(windows):
            own = parts[first : first + len(some)]
            self._begin()
            found = self.encode(some, torch.stack(own)) if own else self.encode(some)
            groups.append({name: self._free(value) for name, value in found.items()})
            first += len(some)
        return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}

    def parts(self, looked: Sequence[Any], boxes: Sequence[Sequence[int]]) -> list[Tensor]:
        """The part of each window; none where the method has no ``part``."""
        if not self.defines("part"):
            return []
        return [self.part(own, box) for own, box in zip(looked, boxes, strict=True)]

    @torch.inference_mode()
    def scores(self, windows: Tensor, text: Text | Tensor) -> Tensor:
        """Scores (B, h, w, Q) of text, or of its unit vectors (Q, D), each window an image of its
        own.
        """
        windows = windows.to(self.clip.device)
        text = (text if isinstance(text, Text) else Text(text)).to(self.clip.device)
        pictures = [Picture(window) for window in windows]
        looked = [self.look(picture) for picture in pictures]
        box = [0, 0, *windows.shape[-2:]]
        encoded = self.run(windows, self.parts(looked, [box] * len(windows)))
        found = []
        for i, picture in enumerate(pictures):
            own = {name: value[i : i + 1] for name, value in encoded.items()}
            found.append(self.score(View(picture, torch.tensor([box]), own, looked[i]), text))
        return torch.stack(found) if self.joins_windows else torch.cat(found)

    def _groups(self, windows: Tensor) -> list[Tensor]:
        if not isinstance(windows, Tensor) or windows.ndim != 4:
            shape = getattr(windows, "shape", None)
            got = type(windows).__name__ if shape is None else f"{tuple(shape)} {windows.dtype}"
            raise SFPError(
                f"Windows must be a float tensor (B, 3, H, W), got {got};"
                " make one with the clip's normalise."
            )
        groups = windows.split(self.trunk.windows_at_once(*windows.shape[-2:]))
        return [to_device(group, self.clip.device) for group in groups]

    def _begin(self) -> None:
        """Tell CUDA graphs that nobody reads what the last run returned any more."""
        if self.compiled in _GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()

    def _free(self, output: Tensor) -> Tensor:
        """A copy where the next run of a CUDA graph would write over its output."""
        return output.clone() if self.compiled in _GRAPHS else output

    # ------------------------------------------------------------------ provenance
    def options(self) -> dict[str, Any]:
        """Its options as they stand, for results: plain values, layers as they were chosen."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.kw_only}
        if self.detector_options:
            values["pm"] = dict(type=self.pm, **self.detector_options)
        return {name: _plain(value) for name, value in values.items()}

    def changed_options(self) -> dict[str, Any]:
        """The options that are not as published, those of the detector included, for tables."""
        now = {name: getattr(self, name) for name in self._standard}
        standard = self._standard
        changed = {n: v for n, v in now.items() if _tuples(v) != _tuples(standard[n])}
        if not self.purify:
            purifying = ("pm", "purify_layers")
            return {n: _plain(value) for n, value in changed.items() if n not in purifying}
        usual = {**DETECTORS.options(self.pm), **self.detector_published.get(self.pm, {})}
        detector = {n: v for n, v in self.detector_options.items() if v != usual[n]}
        return {name: _plain(value) for name, value in {**changed, **detector}.items()}

    def __repr__(self) -> str:
        detector = self.purifier.detector if self.purifier else None
        return f"{type(self).__name__}({self.clip!r}, purifier={detector})"


def warn_once(message: str) -> None:
    """A warning, the first time in this process."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=3)


def _plain(value: Any) -> Any:
    """A value that JSON can hold; a callable by its name."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return getattr(value, "__name__", repr(value)) if callable(value) else value


def _tuples(value: Any) -> Any:
    """A value with tuples for its lists, so that [4, 10] equals (4, 10)."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def build_method(name: str, clip: FrozenCLIP, **options: Any) -> Method:
    """The method of that name on a frozen CLIP: ``method(windows)`` gives features (B, h, w, D).

    Options are the method's own, those of every method (``purify``, ``pm``, ``purify_layers`` ...)
    and those of its detector (``max_outliers``, ``cls_factor``, ``k`` ...), which may also stand in
    ``pm=dict(type="SOM", max_outliers=10)``.

    Raises:
        SFPError: unknown method, detector or option; the message offers the closest name.

    >>> import torch, sfp
    >>> method = sfp.build_method("SFP", sfp.load_clip("Toyland", device="cpu"), max_outliers=10)
    >>> method(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 14, 14, 64])
    """
    options = check_method(name, options)
    if not isinstance(clip, FrozenCLIP):
        raise SFPError(
            f"build_method got {clip!r} as clip; give the frozen CLIP that load_clip returns."
        )
    return METHODS.get(name)(clip, **options)


def check_method(
    name: str, options: Mapping[str, Any], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Options as a method takes them, its detector's in ``pm``, before anything is loaded.

    Args:
        others: what the caller takes besides, see ``unknown_choice``.

    Raises:
        SFPError: unknown method, detector or option, or a value of another type than the default's.
    """
    known, given = METHODS.options(name), dict(options)
    METHODS.check_options(name, {"pm": given.get("pm")})
    METHODS.get(name).check_given(given)
    usual = {**PUBLISHED, **METHODS.get(name).published}["pm"]
    detector, of_detector = parse_spec(usual if given.get("pm") is None else given["pm"])
    takes = DETECTORS.options(detector)
    for option in [key for key in given if key not in known and key in takes]:
        if option in of_detector:
            raise SFPError(f"{option} of {detector} is given twice, once in pm; keep one.")
        of_detector[option] = given.pop(option)
    DETECTORS.check_options(detector, of_detector)
    METHODS.check_options(name, given, [*takes, *others])
    return {**given, "pm": dict(type=detector, **of_detector)} if of_detector else given


def list_methods() -> list[str]:
    """Names of all methods.

    >>> "SFP" in list_methods()
    True
    """
    return METHODS.names()
