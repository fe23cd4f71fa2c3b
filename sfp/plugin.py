"""Making the package known to mmsegmentation, so that ``custom_imports = dict(imports=['sfp'])`` is
all a config needs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from sfp.errors import SFPError

PAIRS = (
    "pip install 'sfp-ovss[mmseg]' (mmcv-lite==2.1.0 with onedl-mmsegmentation==1.4.2, no compiler"
    " needed), or have full mmcv>=2.0.0,<2.2.0 with mmsegmentation==1.2.2"
)
_MODULES = {
    "MODELS": "sfp.segmentor",
    "DATASETS": "sfp.datasets.mmseg_datasets",
    "TRANSFORMS": "sfp.datasets.labels",
    "METRICS": "sfp.evaluation.metric",
}


def register_with_mmseg() -> None:
    """Give mmseg's registries the places of our classes; they import them when first asked for a
    name.

    Importing mmseg's models takes seconds, so ``import sfp`` doesn't. Without mmseg nothing
    happens.
    """
    if find_spec("mmseg") is None or find_spec("mmengine") is None:
        return
    try:
        registry = importlib.import_module("mmseg.registry")
    except Exception:  # a broken installation is reported by require_mmseg, to those who need it
        return
    for name, module in _MODULES.items():
        table = getattr(registry, name)
        if table._imported:
            importlib.import_module(module)
        elif module not in table._locations:
            table._locations.append(module)


def require_mmseg() -> None:
    """Import mmsegmentation quietly.

    Raises:
        SFPError: it is missing, or mmcv and mmsegmentation don't fit each other; names the pair
            to install.
    """
    try:
        # onedl-mmsegmentation prints that its company's client is absent, mmcv-lite warns of ops
        # that CLIP has no use for
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            importlib.import_module("mmseg.models")
            importlib.import_module("mmseg.datasets")
    except (ImportError, AssertionError, RuntimeError) as error:
        found = ", ".join(
            f"{name} {_version(name)}"
            for name in ("mmcv", "mmcv-lite", "mmengine", "mmsegmentation", "onedl-mmsegmentation")
        )
        reason = str(error).split("\n")[0] or type(error).__name__
        raise SFPError(
            f"mmsegmentation can't be imported here ({reason}); {PAIRS}. Found: {found}."
        ) from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
