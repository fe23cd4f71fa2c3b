"""The three tabs: segment a picture, inspect the layers, compare two methods."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from sfp import SFPError, list_detectors, list_methods
from sfp.page import views
from sfp.page.backend import Around, Backend, Settings
from sfp.page.widgets import QUEUED, QUIET, done_status, errors_as_status, picture_widget

_OUT_OF_PLACE = (
    "Toyland's CLIP knows its own cartoons alone: of a photograph its labels mean nothing, so"
    " choose another backbone for one."
)
_AROUND = "A usual background was asked for around so few names."
SEGMENT_HINT = views.hint("Press Segment to see where your words are.")
_CLICK_HINT = views.hint("Click the picture to see the scores of the words there.")
_INSPECT_HINT = views.hint(
    "Press Inspect to see what each layer of CLIP does with the picture, "
    "before and after its outliers are repaired."
)
_COMPARE_HINT = views.hint("Press Compare to see the same words by two methods.")
_PANELS_HINT = views.hint(
    "Attention is drawn as its square root, from dark to bright; outliers are outlined; "
    "a white frame marks the chosen patch."
)


def segment_tab(
    backend: Backend,
    picture: gr.State,
    names: gr.Textbox,
    around: list[gr.components.Component],
    settings: list[gr.Dropdown],
) -> dict[str, Any]:
    """Returns the event that a new example runs too; ``around`` holds what ``Around`` does."""
    asked = gr.State(None)  # what the shown result was asked with
    button = gr.Button("Segment", variant="primary", size="md", elem_id="sfp-segment")
    status = gr.HTML(SEGMENT_HINT, elem_id="sfp-segment-status")
    overlay = picture_widget(
        "overlay", "Result: click it", True, ["download", "fullscreen"], visible=False
    )
    legend = gr.HTML(elem_id="sfp-legend")
    scores = gr.Label(visible=False, num_top_classes=6, show_heading=False, elem_id="sfp-scores")
    with gr.Row():
        downloads = [
            gr.DownloadButton(label, visible=False, size="sm", elem_id=f"sfp-download-{kind}")
            for kind, label in (("png", "Labels (PNG)"), ("coco", "Masks (COCO JSON)"))
        ]
    hidden = [gr.Image(visible=False), "", gr.Label(visible=False), None]
    hidden += [gr.DownloadButton(visible=False)] * len(downloads)

    def segment(
        key: str | None, text: str, background: bool, least: float, *chosen: str
    ) -> tuple[Any, ...]:
        request = (key, text, Settings(*chosen), Around(bool(background), float(least)))
        began, computed = time.perf_counter(), backend.computed()
        result = backend.segmentation(*request)
        drawn = gr.Image(result.overlay(legend=False), visible=True)
        done = done_status(
            result.image,
            request[2],
            backend.repair(request[2]),
            began if backend.computed() > computed else None,
            _OUT_OF_PLACE if backend.is_out_of_place(key, request[2]) else "",
        )
        legend = views.legend(result) + _CLICK_HINT
        if request[3].background and len(result.protocol["words"][0]) > 5:
            legend += views.hint(_AROUND)
        files = [gr.DownloadButton(value=file, visible=True) for file in backend.files(result)]
        return done, drawn, legend, gr.Label(visible=False), request, *files

    def click(
        request: tuple[str, str, Settings, Around] | None, event: gr.SelectData
    ) -> tuple[Any, gr.Label]:
        if request is None:
            return gr.skip(), gr.Label(visible=False)
        x, y = event.index
        found = backend.segmentation(*request).at(x, y)
        return gr.skip(), gr.Label(found.scores, label=f"At x {x}, y {y}", visible=True)

    run = dict(
        fn=errors_as_status(segment, 5 + len(downloads), hidden),
        inputs=[picture, names, *around, *settings],
        outputs=[status, overlay, legend, scores, asked, *downloads],
        show_progress_on=status,
        **QUEUED,
    )
    gr.on([button.click, names.submit], **run)
    overlay.select(errors_as_status(click, 2), asked, [status, scores], **QUIET)
    return run


def inspect_tab(backend: Backend, picture: gr.State, settings: list[gr.Dropdown]) -> dict[Any, Any]:
    """Returns what each of its parts becomes when the picture is another one."""
    asked = gr.State(None)
    patch = gr.State(None)
    with gr.Row():
        detector = gr.Dropdown(
            list_detectors(),
            value="SOM",
            label="Show outliers by",
            elem_id="sfp-detector",
            min_width=140,
        )
        layer = gr.Slider(
            1, 12, value=9, step=1, label="Layer", elem_id="sfp-layer", scale=2, min_width=200
        )
    everywhere = gr.Checkbox(
        True,
        label="Repair after every layer, not only where the method does",
        elem_id="sfp-everywhere",
    )
    button = gr.Button("Inspect", variant="primary", size="md", elem_id="sfp-inspect")
    status = gr.HTML(_INSPECT_HINT, elem_id="sfp-inspect-status")
    caption = gr.HTML(elem_id="sfp-caption")
    with gr.Column(visible=False) as panel:
        with gr.Row():
            panels = [
                picture_widget("chosen", "Click a patch, in any of these", True, min_width=140),
                picture_widget("outliers", "Outliers", True, min_width=140),
                picture_widget(
                    "class-token", "What the class token attends to", True, min_width=140
                ),
            ]
        with gr.Row():
            panels += [
                picture_widget("before", "What the patch attends to, before", True, min_width=140),
                picture_widget("after", "... and after purification", True, min_width=140),
            ]
        gr.HTML(_PANELS_HINT)

    def draw(request: tuple[str, Settings, str], at_layer: int, at: tuple[int, int]) -> tuple:
        return views.draw_layer(backend.inspection(*request), at_layer, at)

    def inspect(
        key: str | None,
        by: str,
        each: bool,
        at_layer: int,
        at: tuple[int, int] | None,
        *chosen: str,
    ) -> tuple[Any, ...]:
        request = (key, Settings(*chosen, every_layer=each), by)
        began, computed = time.perf_counter(), backend.computed()
        inspection = backend.inspection(*request)
        began = began if backend.computed() > computed else None
        height, width = inspection.grid
        if at is None or not (at[0] < height and at[1] < width):
            at = (height // 2, width // 2)
        at_layer = min(int(at_layer), inspection.layers)
        slider = gr.Slider(maximum=inspection.layers, value=at_layer)
        done = done_status(inspection.image, request[1], backend.repair(request[1]), began)
        return done, request, at, slider, gr.Column(visible=True), *draw(request, at_layer, at)

    def move(
        request: tuple[str, Settings, str] | None, at_layer: int, at: tuple[int, int] | None
    ) -> tuple[Any, ...]:
        if request is None or at is None:
            return tuple([gr.skip()] * 7)
        return gr.skip(), *draw(request, int(at_layer), at)

    def click(
        request: tuple[str, Settings, str] | None, at_layer: int, event: gr.SelectData
    ) -> tuple[Any, ...]:
        if request is None:
            return tuple([gr.skip()] * 8)
        inspection = backend.inspection(*request)
        height, width = inspection.image.shape[:2]
        x, y = (place * height / views.HEIGHT for place in event.index)
        at = inspection.patch_at(min(x, width - 1), y)
        return gr.skip(), at, *draw(request, int(at_layer), at)

    inputs = [picture, detector, everywhere, layer, patch, *settings]
    outputs = [status, asked, patch, layer, panel, caption, *panels]
    gone = [None, gr.skip(), gr.skip(), gr.Column(visible=False), "", *[gr.skip()] * len(panels)]
    run = errors_as_status(inspect, len(outputs), gone)
    button.click(run, inputs, outputs, show_progress_on=status, **QUEUED)
    gr.on([detector.input, everywhere.input], run, inputs, outputs, **QUIET)
    layer.input(
        errors_as_status(move, 7), [asked, layer, patch], [status, caption, *panels], **QUIET
    )
    for image in panels:
        image.select(
            errors_as_status(click, 8), [asked, layer], [status, patch, caption, *panels], **QUIET
        )
    return {status: _INSPECT_HINT, caption: "", panel: gr.Column(visible=False), asked: None}


def compare_tab(
    backend: Backend,
    picture: gr.State,
    names: gr.Textbox,
    around: list[gr.components.Component],
    settings: list[gr.Dropdown],
) -> dict[Any, Any]:
    """Returns what each of its parts becomes when the picture is another one."""
    other = gr.Dropdown(
        list_methods(), value="CLIP", label="Compare the method with", elem_id="sfp-other"
    )
    button = gr.Button("Compare", variant="primary", size="md", elem_id="sfp-compare")
    status = gr.HTML(_COMPARE_HINT, elem_id="sfp-compare-status")
    with gr.Row(visible=False) as row:
        sides = [picture_widget(f"side-{side}", "Result", min_width=140) for side in ("a", "b")]
    shares = gr.HTML(elem_id="sfp-shares")

    def compare(
        key: str | None, text: str, second: str, background: bool, least: float, *chosen: str
    ) -> tuple[Any, ...]:
        began, computed = time.perf_counter(), backend.computed()
        first, *rest = chosen
        outside = Around(bool(background), float(least))
        if second == first:
            raise SFPError(f"Both methods are {second}; choose another one to compare it with.")
        results = {
            method: backend.segmentation(key, text, Settings(method, *rest), outside)
            for method in (first, second)
        }
        drawn = [
            gr.Image(result.overlay(legend=False), label=title) for title, result in results.items()
        ]
        repairs = [f"{method} with {backend.repair(Settings(method, *rest))}" for method in results]
        done = done_status(
            results[first].image,
            Settings(f"{first} and {second}", *rest),
            "; ".join(repairs),
            began if backend.computed() > computed else None,
            _OUT_OF_PLACE if backend.is_out_of_place(key, Settings(first, *rest)) else "",
        )
        return done, gr.Row(visible=True), *drawn, views.comparison(results)

    button.click(
        errors_as_status(compare, 5, [gr.Row(visible=False), gr.skip(), gr.skip(), ""]),
        [picture, names, other, *around, *settings],
        [status, row, *sides, shares],
        show_progress_on=status,
        **QUEUED,
    )
    return {status: _COMPARE_HINT, row: gr.Row(visible=False), shares: ""}
