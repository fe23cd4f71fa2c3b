"""What the tabs of the page share: options of events, pictures, and the line of status."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np

from sfp.errors import SFPError
from sfp.page import views
from sfp.page.backend import AS_PUBLISHED, NONE, OFF, Settings

# every event that uses a model waits in one queue
QUEUED: dict[str, Any] = dict(
    concurrency_id="backend", concurrency_limit=1, api_visibility="private"
)
QUIET: dict[str, Any] = dict(**QUEUED, show_progress="hidden", trigger_mode="always_last")


def picture_widget(
    name: str,
    label: str,
    clickable: bool = False,
    buttons: Sequence[str] = ("fullscreen",),
    **options: Any,
) -> gr.Image:
    """A picture that the page shows, under its label."""
    return gr.Image(
        label=label,
        alt_text=label,
        interactive=False,
        format="png",
        buttons=list(buttons),
        elem_id=f"sfp-{name}",
        elem_classes=["sfp-labelled", "sfp-clickable"] if clickable else ["sfp-labelled"],
        **options,
    )


def done_status(image: np.ndarray, settings: Settings, began: float) -> str:
    """The status of a picture (H, W, 3) on which the work began at ``began``, a perf_counter."""
    height, width = image.shape[:2]
    by = "" if settings.purification in (AS_PUBLISHED, OFF) else "by "
    repair = f"repair {by}{settings.purification}"
    repair += ", after every layer" if settings.every_layer else ""
    repair += f", refined by {settings.refinement}" if settings.refinement != NONE else ""
    seconds = time.perf_counter() - began
    took = f"in {seconds:.1f} s" if seconds >= 0.05 else "at once"
    return views.status(
        f"{settings.method} on {settings.backbone}, {repair}: {width}x{height} pixels {took}."
    )


def without_folders(text: str) -> str:
    """A sentence with files of the server by their names alone: visitors need not know folders."""
    return re.sub(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/]+[\\/])*(?=[^\s\\/])", "", text)


def errors_as_status(work: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """An event's function whose errors become its first output; the other outputs stay."""

    @functools.wraps(work)
    def answer(*inputs: Any) -> Any:
        try:
            return work(*inputs)
        except SFPError as error:
            text = without_folders(str(error))
        except Exception:
            logging.getLogger(__name__).exception("the page's %s failed", work.__name__)
            text = "Something went wrong on the server; its terminal says what."
        status = views.status(text, error=True)
        return status if outputs == 1 else (status, *[gr.skip()] * (outputs - 1))

    return answer
