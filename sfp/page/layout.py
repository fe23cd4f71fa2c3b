"""The page's widgets, and what happens when they are used; each tab has a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sfp import SFPError, list_methods
from sfp.page import views
from sfp.page.backend import (
    AS_PUBLISHED,
    MAX_NAMES_LENGTH,
    NONE,
    Backend,
    purifications,
    refinements,
)
from sfp.page.tabs import SEGMENT_HINT, compare_tab, inspect_tab, segment_tab
from sfp.page.widgets import QUEUED, QUIET, errors_as_status, picture_widget

CSS_FILE = Path(__file__).with_name("page.css")
TITLE = "SFP: pictures segmented by words"
_WORDS = (
    "A frozen CLIP looks at a picture, you type what to look for, and every pixel gets one of your "
    "words; nothing is trained. See what each layer attends to, and which outlier patches a method "
    "repairs."
)


def build_page(backend: Backend, delete_cache: tuple[int, int]) -> gr.Blocks:
    """The page; ``delete_cache`` is Gradio's."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=delete_cache) as page:
        picture = gr.State(None)  # its key in the backend
        gr.HTML(f"<h1>{TITLE}</h1><p>{_WORDS}</p>", elem_id="sfp-title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                shown = picture_widget("picture", "Picture", buttons=[])
                status = gr.HTML(elem_id="sfp-picture-status")
                gallery = gr.Gallery(
                    [(example.file, None) for example in backend.examples],
                    label="Examples: click one",
                    columns=3,
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="sfp-examples",
                    elem_classes="sfp-labelled",
                )
                upload = gr.UploadButton(
                    "Upload a picture", file_types=["image"], size="md", elem_id="sfp-upload"
                )
                names = gr.Textbox(
                    backend.examples[0].names,
                    label="What to look for",
                    info="Commas between names; or ; between names and , between synonyms; or a "
                    "dataset's list, such as ade20k.",
                    max_length=MAX_NAMES_LENGTH,
                    lines=1,
                    max_lines=4,
                    elem_id="sfp-names",
                )
                around = [
                    gr.Checkbox(
                        True,
                        label="Ask for a usual background, too (with five names or less)",
                        info="Sky, wall, road ...: else each pixel becomes one of the names.",
                        elem_id="sfp-background",
                    ),
                    gr.Slider(
                        0,
                        0.95,
                        value=0,
                        step=0.05,
                        label="Least probability",
                        info="Less probable pixels become background.",
                        elem_id="sfp-least",
                    ),
                ]
            with gr.Column(scale=7, min_width=320):
                settings = _settings(backend)
                with gr.Tabs():
                    with gr.Tab("Segment"):
                        segment = segment_tab(backend, picture, names, around, settings)
                    with gr.Tab("Inspect"):
                        emptied = inspect_tab(backend, picture, settings)
                    with gr.Tab("Compare"):
                        emptied |= compare_tab(backend, picture, names, around, settings)

        def take(file: str) -> tuple[Any, ...]:
            key = backend.add_picture(Path(file))
            ready = f"{Path(file).name} is ready; name what is in it and press a button."
            old = [gr.Image(visible=False), "", gr.Label(visible=False), None]
            old += [gr.DownloadButton(visible=False)] * (len(segment["outputs"]) - 5)
            return views.status(ready), key, backend.picture(key), SEGMENT_HINT, *old

        def choose(event: gr.SelectData) -> tuple[Any, ...]:
            count = len(backend.examples)
            if event.index not in range(count):
                raise SFPError(f"There is no example {event.index}; click one of the {count}.")
            example = backend.examples[event.index]
            key = backend.add_picture(example.file)
            return "", key, backend.picture(key), example.names

        def start() -> tuple[Any, ...]:
            key = backend.add_picture(backend.examples[0].file)
            return key, backend.picture(key)

        page.load(start, None, [picture, shown], **QUIET)
        upload.upload(
            errors_as_status(take, 3 + len(segment["outputs"])),
            upload,
            [status, picture, shown, *segment["outputs"]],
            **QUEUED,
        )
        chosen = gallery.select(
            errors_as_status(choose, 4), None, [status, picture, shown, names], **QUIET
        )
        chosen.success(**segment)
        picture.change(
            lambda: emptied, None, list(emptied), show_progress="hidden", api_visibility="private"
        )
    return page.queue(max_size=32)


def _settings(backend: Backend) -> list[gr.Dropdown]:
    """The choices that ``Settings`` holds."""
    backbones = list(backend.backbones)
    with gr.Row():
        return [
            gr.Dropdown(
                list_methods(),
                value="SFP",
                label="Method",
                info="How features are read off CLIP",
                elem_id="sfp-method",
            ),
            gr.Dropdown(
                purifications(),
                value=AS_PUBLISHED,
                label="Outlier repair",
                info="Which detector finds the outliers",
                elem_id="sfp-purification",
            ),
            gr.Dropdown(
                backbones,
                value=backbones[0],
                label="Backbone",
                info="Toyland knows only its cartoons",
                elem_id="sfp-backbone",
            ),
            gr.Dropdown(
                refinements(),
                value=NONE,
                label="Refinement",
                info="Fits the scores to the picture",
                elem_id="sfp-refinement",
            ),
        ]
