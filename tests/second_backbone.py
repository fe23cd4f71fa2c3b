"""Golden cases of ``goldens/index_second_backbone.json``: pictures, second features, settings.

Everything is read from the index; made-up second features and masks come by its recipes.
"""

from __future__ import annotations

import numpy as np
import parity
import torch
from conftest import parity_clip
from torch import Tensor

from sfp.stages import Text

INDEX = parity.read_index("index_second_backbone")


def settings(file: str) -> dict[str, dict]:
    """The settings of each case of a golden file, such as "vit12/win"."""
    return INDEX["files"].get(file, {}).get("cases", {})


def clip_of(case: str):
    """The network of a case, whose sizes are those of the index."""
    spec = case.split("/")[0]
    own = INDEX["specs"][spec]
    assert (*parity.spec_sizes(spec), parity.spec_width(spec)) == (
        own["layers"],
        own["patch"],
        own["width"],
    )
    return parity_clip(spec, INDEX["seed"])


def picture(name: str, height: int, width: int) -> Tensor:
    """A normalised picture (3, H, W) by its name in the index."""
    with parity.seeded(INDEX["seed"]):
        return parity.image(name, height, width)


def pixels(name: str, height: int, width: int) -> Tensor:
    """The picture as RGB in [0, 1], (3, H, W) float32, for methods that normalise it themselves."""
    return ((picture(name, height, width) + 2.5) / 5).clamp(0, 1)


def features(name: str, channels: int, height: int, width: int) -> Tensor:
    """``pf``: made-up features (C, H, W) of a second model."""
    with parity.seeded(INDEX["seed"]):
        return parity.score_maps(name, channels, height, width)[0]


def normal(name: str, *shape: int, std: float = 1.0) -> np.ndarray:
    """``nrm``: normals of a name, float64."""
    with parity.seeded(INDEX["seed"]):
        return parity._normal(name, *shape, std=std)


def text(classes: int = 7) -> Text:
    with parity.seeded(INDEX["seed"]):
        return Text(parity.text_features(classes))


def golden(file: str, case: str) -> dict[str, np.ndarray]:
    """The arrays of a case; the test is skipped where the folder has none."""
    arrays = parity.golden(file)
    return {
        key.rpartition("/")[2]: value
        for key, value in arrays.items()
        if key.rpartition("/")[0] == case
    }


def close(found: Tensor | np.ndarray, expected: np.ndarray, atol: float, what: str = "") -> None:
    np.testing.assert_allclose(np.asarray(found), expected, atol=atol, rtol=0, err_msg=what)


class MadeUp:
    """A second model of made-up maps, told apart by the windows that it gets: ``windows[i]`` has
    ``maps[i]``. A callable that ``load_backbone`` takes.
    """

    def __init__(self, windows: Tensor, maps: Tensor):
        self.windows, self.maps = windows, maps
        self.__qualname__ = "MadeUp"

    def __call__(self, windows: Tensor) -> Tensor:
        places = [
            next(i for i, own in enumerate(self.windows) if torch.equal(own, window.to(own)))
            for window in windows
        ]
        return self.maps[places]
