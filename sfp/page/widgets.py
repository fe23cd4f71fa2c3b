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
from sfp.page.backend import NONE, Settings

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


def done_status(
    image: np.ndarray, settings: Settings, repair: str, began: float | None, warning: str = ""
) -> str:
    """The status of a picture (H, W, 3).

    Args:
        repair: what was done about outliers, see ``Backend.repair``.
        began: when the work began, by ``perf_counter``; None where nothing had to be done.
        warning: a further sentence.
    """
    height, width = image.shape[:2]
    refined = f", refined by {settings.refinement}" if settings.refinement != NONE else ""
    took = "from the cache" if began is None else f"in {time.perf_counter() - began:.1f} s"
    return views.status(
        f"{settings.method} on {settings.backbone}, {repair}{refined}: {width}x{height} pixels"
        f" {took}. {warning}".strip()
    )


def without_folders(text: str) -> str:
    """A sentence with files of the server by their names alone: visitors need not know folders."""
    return re.sub(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/]+[\\/])*(?=[^\s\\/])", "", text)


def errors_as_status(
    work: Callable[..., Any], outputs: int, cleared: Sequence[Any] | None = None
) -> Callable[..., Any]:
    """An event's function whose errors become its first output.

    Args:
        work: the function.
        outputs: how many it has.
        cleared: what the others become then, so that nothing old is taken for an answer; if None
            they stay.
    """

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
        others = [gr.skip()] * (outputs - 1) if cleared is None else cleared
        return (status, *others) if others else status

    return answer
