"""What the tabs of the page share."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np

from sfp.errors import SFPError
from sfp.page import views
from sfp.page.studio import AS_PUBLISHED, OFF, Settings

# every event that touches a model goes through one queue, one at a time
IN_TURN: dict[str, Any] = dict(
    concurrency_id="studio", concurrency_limit=1, api_visibility="private"
)
QUIET: dict[str, Any] = dict(**IN_TURN, show_progress="hidden", trigger_mode="always_last")


def show_picture(
    place: str,
    label: str,
    clickable: bool = False,
    buttons: Sequence[str] = ("fullscreen",),
    **options: Any,
) -> gr.Image:
    """A picture that the page shows, under its label."""
    classes = ["sfp-labelled", *(["sfp-clickable"] if clickable else [])]
    fixed = dict(
        interactive=False,
        format="png",
        buttons=list(buttons),
        elem_id=f"sfp-{place}",
        elem_classes=classes,
    )
    return gr.Image(label=label, alt_text=label, **fixed, **options)


def told(image: np.ndarray, settings: Settings, began: float) -> str:
    """The status of a picture (H, W, 3) that was worked on since ``began``."""
    height, width = image.shape[:2]
    repair = f"repair {'' if settings.purification in (AS_PUBLISHED, OFF) else 'by '}{settings.purification}"
    repair += ", after every layer" if settings.every_layer else ""
    seconds = time.perf_counter() - began
    took = f"in {seconds:.1f} s" if seconds >= 0.05 else "at once"
    return views.status(
        f"{settings.method} on {settings.backbone}, {repair}: {width}x{height} pixels {took}."
    )


def answering(work: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """An event's function whose errors become the sentence in its first output; the other outputs stay as they are."""

    @functools.wraps(work)
    def answer(*inputs: Any) -> Any:
        try:
            return work(*inputs)
        except SFPError as error:
            said = str(error)
        except Exception:
            logging.getLogger(__name__).exception("the page's %s failed", work.__name__)
            said = "Something went wrong on the server; its terminal says what."
        return (
            views.status(said, error=True)
            if outputs == 1
            else (views.status(said, error=True), *[gr.skip()] * (outputs - 1))
        )

    return answer
