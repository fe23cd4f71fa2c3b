"""A check of the installation that everything with CLIP in it depends on."""

from __future__ import annotations

from importlib.metadata import version

from sfp.errors import SFPError


def require_torchvision_pair() -> None:
    """Raises SFPError where torch and torchvision are not built for each other."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        raise SFPError(
            f"torch {version('torch')} and torchvision {version('torchvision')} are not a pair "
            f"({error}); install both from one place, for instance: "
            "pip install torch==2.15.0 torchvision==0.29.2"
        ) from error
