"""The page's widgets, and what happens when they are used."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from sfp import SFPError, list_detectors, list_methods
from sfp.errors import sentence
from sfp.page import views
from sfp.page.studio import AS_PUBLISHED, LONGEST_NAMES, OFF, Settings, Studio, purifications

CSS_FILE = Path(__file__).with_name("page.css")
TITLE = "SFP: pictures segmented by words"
_WORDS = (
    "A frozen CLIP sees a picture, you type what to look for, and every pixel gets one of your words; nothing is trained. "
    "See what each layer looks at, and which outlier patches a method repairs."
)
_METHOD, _OTHER_METHOD, _DETECTOR, _LAYER = "SFP-release", "CLIP", "SOM", 8
# every event that touches a model goes through one queue, one at a time
_IN_TURN: dict[str, Any] = dict(concurrency_id="studio", concurrency_limit=1, api_visibility="private")
_QUIET: dict[str, Any] = dict(**_IN_TURN, show_progress="hidden", trigger_mode="always_last")


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        picture = gr.State(None)  # its key in the studio
        gr.HTML(f"<h1>{TITLE}</h1><p>{_WORDS}</p>", elem_id="sfp-title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                shown = _picture("picture", "Picture", buttons=[])
                said = gr.HTML(elem_id="sfp-picture-status")
                gallery = gr.Gallery(
                    [(example.file, None) for example in studio.examples],
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
                upload = gr.UploadButton("Upload a picture", file_types=["image"], size="md", elem_id="sfp-upload")
                names = gr.Textbox(
                    studio.examples[0].names,
                    label="What to look for",
                    info="Commas between names; or ; between names and , between synonyms.",
                    max_length=LONGEST_NAMES,
                    lines=1,
                    max_lines=4,
                    elem_id="sfp-names",
                )
            with gr.Column(scale=7, min_width=320):
                settings = _settings(studio)
                with gr.Tabs():
                    with gr.Tab("Segment"):
                        segment = _segment_tab(studio, picture, names, settings)
                    with gr.Tab("Inspect"):
                        _inspect_tab(studio, picture, settings)
                    with gr.Tab("Compare"):
                        _compare_tab(studio, picture, names, settings)

        def take(file: str) -> tuple[Any, ...]:
            key = studio.add_picture(Path(file))
            pixels = studio.picture(key)
            return views.status(f"{Path(file).name} is ready; name what is in it and press a button."), key, pixels

        def choose(event: gr.SelectData) -> tuple[Any, ...]:
            example = studio.examples[event.index]
            key = studio.add_picture(example.file)
            return "", key, studio.picture(key), example.names

        def start() -> tuple[Any, ...]:
            key = studio.add_picture(studio.examples[0].file)
            return key, studio.picture(key)

        page.load(start, None, [picture, shown], **_QUIET)
        upload.upload(_answer(take, 3), upload, [said, picture, shown], **_IN_TURN)
        chosen = gallery.select(_answer(choose, 4), None, [said, picture, shown, names], **_QUIET)
        chosen.success(**segment)
    return page.queue(max_size=32)


def _settings(studio: Studio) -> list[gr.Dropdown]:
    """The choices that ``Settings`` holds."""
    with gr.Row():
        return [
            gr.Dropdown(list_methods(), value=_METHOD, label="Method", info="How features are read off CLIP", elem_id="sfp-method"),
            gr.Dropdown(
                purifications(),
                value=AS_PUBLISHED,
                label="Outlier repair",
                info="Which detector finds the outliers",
                elem_id="sfp-purification",
            ),
            gr.Dropdown(
                list(studio.backbones),
                value=next(iter(studio.backbones)),
                label="Backbone",
                info="Toyland knows only its cartoons",
                elem_id="sfp-backbone",
            ),
        ]


def _segment_tab(studio: Studio, picture: gr.State, names: gr.Textbox, settings: list[gr.Dropdown]) -> dict[str, Any]:
    """Returns what the event of a new example runs too."""
    asked = gr.State(None)  # what the shown result was asked with
    button = gr.Button("Segment", variant="primary", size="md", elem_id="sfp-segment")
    said = gr.HTML(views.hint("Press Segment to see where your words are."), elem_id="sfp-segment-status")
    overlay = _picture("overlay", "Result: click it", True, buttons=["download", "fullscreen"], visible=False)
    legend = gr.HTML(elem_id="sfp-legend")
    pixel = gr.HTML(elem_id="sfp-pixel")

    def segment(key: str | None, text: str, *chosen: str) -> tuple[Any, ...]:
        request = (key, text, Settings(*chosen))
        began = time.perf_counter()
        result = studio.segmentation(*request)
        tip = views.hint("Click the picture: the name and the scores under the click are shown here.")
        drawn = gr.Image(result.overlay(legend=False), visible=True)
        return _done(result.image, request[2], began), drawn, views.legend(result), tip, request

    def click(request: tuple[str, str, Settings] | None, event: gr.SelectData) -> str:
        if request is None:
            return ""
        result, (x, y) = studio.segmentation(*request), event.index
        return views.pixel(result.at(x, y), result, x, y)

    run = dict(
        fn=_answer(segment, 5), inputs=[picture, names, *settings], outputs=[said, overlay, legend, pixel, asked],
        show_progress_on=said, **_IN_TURN,
    )  # fmt: skip
    gr.on([button.click, names.submit], **run)
    overlay.select(_answer(click, 1), asked, pixel, **_QUIET)
    return run


def _inspect_tab(studio: Studio, picture: gr.State, settings: list[gr.Dropdown]) -> None:
    asked = gr.State(None)
    patch = gr.State(None)
    with gr.Row():
        detector = gr.Dropdown(list_detectors(), value=_DETECTOR, label="Show outliers by", elem_id="sfp-detector", min_width=140)
        layer = gr.Slider(1, 12, value=_LAYER, step=1, label="Layer", elem_id="sfp-layer", scale=2, min_width=200)
    everywhere = gr.Checkbox(True, label="Repair after every layer, not only where the method does", elem_id="sfp-everywhere")
    button = gr.Button("Inspect", variant="primary", size="md", elem_id="sfp-inspect")
    said = gr.HTML(
        views.hint("Press Inspect to see what each layer of CLIP does with the picture, before and after its outliers are repaired."),
        elem_id="sfp-inspect-status",
    )
    caption = gr.HTML(elem_id="sfp-caption")
    panels: list[gr.Image] = []
    with gr.Column(visible=False) as panel:
        for row in (
            [("chosen", "Click a patch, in any of these"), ("outliers", "Outliers"), ("class-token", "What the class token looks at")],
            [("before", "What the patch looks at, before"), ("after", "... and after purification")],
        ):
            with gr.Row():
                panels += [_picture(place, label, True, min_width=140) for place, label in row]
        gr.HTML(
            views.hint("Attention by its square root, from dark to bright; outliers are outlined; a white frame marks the chosen patch.")
        )

    def draw(request: tuple[str, Settings, str], at_layer: int, at: tuple[int, int]) -> list[Any]:
        drawn = views.draw_layer(studio.inspection(*request), at_layer, at)
        pictures = [drawn.chosen, drawn.outliers, drawn.class_token, drawn.before, drawn.after]
        return [drawn.caption, *pictures]

    def inspect(key: str | None, by: str, each: bool, at_layer: int, at: tuple[int, int] | None, *chosen: str) -> tuple[Any, ...]:
        request = (key, Settings(*chosen, every_layer=each), by)
        began = time.perf_counter()
        inspection = studio.inspection(*request)
        height, width = inspection.grid
        if at is None or not (at[0] < height and at[1] < width):
            at = (height // 2, width // 2)
        at_layer = min(int(at_layer), inspection.layers)
        slider = gr.Slider(maximum=inspection.layers, value=at_layer)
        done = _done(inspection.image, request[1], began)
        return done, request, at, slider, gr.Column(visible=True), *draw(request, at_layer, at)

    def move(request: tuple[str, Settings, str] | None, at_layer: int, at: tuple[int, int] | None) -> tuple[Any, ...]:
        if request is None or at is None:
            return tuple([gr.skip()] * 7)
        return gr.skip(), *draw(request, int(at_layer), at)

    def click(request: tuple[str, Settings, str] | None, at_layer: int, event: gr.SelectData) -> tuple[Any, ...]:
        if request is None:
            return tuple([gr.skip()] * 8)
        inspection = studio.inspection(*request)
        x, y = (place * inspection.image.shape[0] / views.HEIGHT for place in event.index)
        at = inspection.patch_at(min(x, inspection.image.shape[1] - 1), y)
        return gr.skip(), at, *draw(request, int(at_layer), at)

    inputs = [picture, detector, everywhere, layer, patch, *settings]
    outputs = [said, asked, patch, layer, panel, caption, *panels]
    button.click(_answer(inspect, len(outputs)), inputs, outputs, show_progress_on=said, **_IN_TURN)
    gr.on([detector.input, everywhere.input], _answer(inspect, len(outputs)), inputs, outputs, **_QUIET)
    layer.input(_answer(move, 7), [asked, layer, patch], [said, caption, *panels], **_QUIET)
    for image in panels:
        image.select(_answer(click, 8), [asked, layer], [said, patch, caption, *panels], **_QUIET)


def _compare_tab(studio: Studio, picture: gr.State, names: gr.Textbox, settings: list[gr.Dropdown]) -> None:
    other = gr.Dropdown(list_methods(), value=_OTHER_METHOD, label="Compare the method with", elem_id="sfp-other")
    button = gr.Button("Compare", variant="primary", size="md", elem_id="sfp-compare")
    said = gr.HTML(views.hint("Press Compare to see the same words by two methods."), elem_id="sfp-compare-status")
    with gr.Row(visible=False) as row:
        sides = [_picture(f"side-{side}", "Result", min_width=140) for side in ("a", "b")]
    shares = gr.HTML(elem_id="sfp-shares")

    def compare(key: str | None, text: str, second: str, *chosen: str) -> tuple[Any, ...]:
        began, first = time.perf_counter(), Settings(*chosen)
        if second == first.method:
            raise SFPError(f"Both methods are {second}; choose another one to compare it with.")
        results = {
            settings.method: studio.segmentation(key, text, settings)
            for settings in (first, Settings(second, first.purification, first.backbone))
        }
        drawn = [gr.Image(result.overlay(legend=False), label=title) for title, result in results.items()]
        image = next(iter(results.values())).image
        done = _done(image, Settings(" and ".join(results), first.purification, first.backbone), began)
        return done, gr.Row(visible=True), *drawn, views.comparison(results)

    button.click(_answer(compare, 5), [picture, names, other, *settings], [said, row, *sides, shares], show_progress_on=said, **_IN_TURN)


def _picture(place: str, label: str, clickable: bool = False, buttons: Sequence[str] = ("fullscreen",), **options: Any) -> gr.Image:
    """A picture that the page shows, under its label."""
    classes = ["sfp-labelled", *(["sfp-clickable"] if clickable else [])]
    fixed = dict(interactive=False, format="png", buttons=list(buttons), elem_id=f"sfp-{place}", elem_classes=classes)
    return gr.Image(label=label, alt_text=label, **fixed, **options)


def _done(image: np.ndarray, settings: Settings, began: float) -> str:
    height, width = image.shape[:2]
    repair = f"repair {'' if settings.purification in (AS_PUBLISHED, OFF) else 'by '}{settings.purification}"
    repair += ", after every layer" if settings.every_layer else ""
    seconds = time.perf_counter() - began
    took = f"in {seconds:.1f} s" if seconds >= 0.05 else "at once"
    return views.status(f"{settings.method} on {settings.backbone}, {repair}: {width}x{height} pixels {took}.")


def _answer(work: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """An event's function whose errors become the sentence in its first output; the other outputs stay as they are."""

    @functools.wraps(work)
    def answer(*inputs: Any) -> Any:
        try:
            return work(*inputs)
        except SFPError as error:
            said = sentence(error)
        except Exception:
            logging.getLogger(__name__).exception("the page's %s failed", work.__name__)
            said = "Something went wrong on the server; its terminal says what."
        return views.status(said, error=True) if outputs == 1 else (views.status(said, error=True), *[gr.skip()] * (outputs - 1))

    return answer
