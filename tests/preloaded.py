"""What the processes of ``forked.py`` have imported before they start."""

import contextlib
import gc

import sfp.api
import sfp.segmentor
from sfp.errors import SFPError
from sfp.plugin import require_mmseg

with contextlib.suppress(SFPError):  # without mmsegmentation, its tests are skipped
    require_mmseg()
gc.freeze()  # what is imported is no garbage

__all__ = ["sfp"]
