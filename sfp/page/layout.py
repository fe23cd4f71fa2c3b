"""The page's widgets, and what happens when they are used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr

from sfp import SFPError, list_detectors, list_methods
from sfp.page import views
from sfp.page.parts import IN_TURN, QUIET, answering, show_picture, told
from sfp.page.studio import AS_PUBLISHED, LONGEST_NAMES, Settings, Studio, purifications

CSS_FILE = Path(__file__).with_name("page.css")
TITLE = "SFP: pictures segmented by words"
_WORDS = (
    "A frozen CLIP sees a picture, you type what to look for, and every pixel gets one of your words; nothing is trained. "
    "See what each layer looks at, and which outlier patches a method repairs."
)
_SEGMENT_HINT = views.hint("Press Segment to see where your words are.")
_INSPECT_HINT = views.hint(
    "Press Inspect to see what each layer of CLIP does with the picture, before and after its outliers are repaired."
)
_COMPARE_HINT = views.hint("Press Compare to see the same words by two methods.")
_METHOD, _OTHER_METHOD, _DETECTOR, _LAYER = "SFP", "CLIP", "SOM", 9


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        picture = gr.State(None)  # its key in the studio
        gr.HTML(f"<h1>{TITLE}</h1><p>{_WORDS}</p>", elem_id="sfp-title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                shown = show_picture("picture", "Picture", buttons=[])
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
                upload = gr.UploadButton(
                    "Upload a picture", file_types=["image"], size="md", elem_id="sfp-upload"
                )
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
                        stale = _inspect_tab(studio, picture, settings)
                    with gr.Tab("Compare"):
                        stale |= _compare_tab(studio, picture, names, settings)

        def take(file: str) -> tuple[Any, ...]:
            key = studio.add_picture(Path(file))
            pixels = studio.picture(key)
            ready = views.status(
                f"{Path(file).name} is ready; name what is in it and press a button."
            )
            return ready, key, pixels, _SEGMENT_HINT, gr.update(visible=False), "", "", None

        def choose(event: gr.SelectData) -> tuple[Any, ...]:
            if not 0 <= event.index < len(studio.examples):
                raise SFPError(
                    f"There is no example {event.index}; click one of the {len(studio.examples)}."
                )
            example = studio.examples[event.index]
            key = studio.add_picture(example.file)
            return "", key, studio.picture(key), example.names

        def start() -> tuple[Any, ...]:
            key = studio.add_picture(studio.examples[0].file)
            return key, studio.picture(key)

        page.load(start, None, [picture, shown], **QUIET)
        upload.upload(
            answering(take, 8), upload, [said, picture, shown, *segment["outputs"]], **IN_TURN
        )
        chosen = gallery.select(answering(choose, 4), None, [said, picture, shown, names], **QUIET)
        chosen.success(**segment)
        picture.change(
            lambda: stale, None, list(stale), show_progress="hidden", api_visibility="private"
        )
    return page.queue(max_size=32)


def _settings(studio: Studio) -> list[gr.Dropdown]:
    """The choices that ``Settings`` holds."""
    with gr.Row():
        return [
            gr.Dropdown(
                list_methods(),
                value=_METHOD,
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
                list(studio.backbones),
                value=next(iter(studio.backbones)),
                label="Backbone",
                info="Toyland knows only its cartoons",
                elem_id="sfp-backbone",
            ),
        ]


def _segment_tab(
    studio: Studio, picture: gr.State, names: gr.Textbox, settings: list[gr.Dropdown]
) -> dict[str, Any]:
    """Returns what the event of a new example runs too."""
    asked = gr.State(None)  # what the shown result was asked with
    button = gr.Button("Segment", variant="primary", size="md", elem_id="sfp-segment")
    said = gr.HTML(_SEGMENT_HINT, elem_id="sfp-segment-status")
    overlay = show_picture(
        "overlay", "Result: click it", True, buttons=["download", "fullscreen"], visible=False
    )
    legend = gr.HTML(elem_id="sfp-legend")
    pixel = gr.HTML(elem_id="sfp-pixel")

    def segment(key: str | None, text: str, *chosen: str) -> tuple[Any, ...]:
        request = (key, text, Settings(*chosen))
        began = time.perf_counter()
        result = studio.segmentation(*request)
        tip = views.hint(
            "Click the picture: the name and the scores under the click are shown here."
        )
        drawn = gr.Image(result.overlay(legend=False), visible=True)
        return told(result.image, request[2], began), drawn, views.legend(result), tip, request

    def click(request: tuple[str, str, Settings] | None, event: gr.SelectData) -> str:
        if request is None:
            return ""
        result, (x, y) = studio.segmentation(*request), event.index
        return views.pixel(result.at(x, y), result, x, y)

    run = dict(
        fn=answering(segment, 5), inputs=[picture, names, *settings], outputs=[said, overlay, legend, pixel, asked],
        show_progress_on=said, **IN_TURN,
    )  # fmt: skip
    gr.on([button.click, names.submit], **run)
    overlay.select(answering(click, 1), asked, pixel, **QUIET)
    return run


def _inspect_tab(studio: Studio, picture: gr.State, settings: list[gr.Dropdown]) -> dict[Any, Any]:
    """Returns what each of its parts becomes when the picture is another one."""
    asked = gr.State(None)
    patch = gr.State(None)
    with gr.Row():
        detector = gr.Dropdown(
            list_detectors(),
            value=_DETECTOR,
            label="Show outliers by",
            elem_id="sfp-detector",
            min_width=140,
        )
        layer = gr.Slider(
            1, 12, value=_LAYER, step=1, label="Layer", elem_id="sfp-layer", scale=2, min_width=200
        )
    everywhere = gr.Checkbox(
        True,
        label="Repair after every layer, not only where the method does",
        elem_id="sfp-everywhere",
    )
    button = gr.Button("Inspect", variant="primary", size="md", elem_id="sfp-inspect")
    said = gr.HTML(_INSPECT_HINT, elem_id="sfp-inspect-status")
    caption = gr.HTML(elem_id="sfp-caption")
    panels: list[gr.Image] = []
    with gr.Column(visible=False) as panel:
        for row in (
            [
                ("chosen", "Click a patch, in any of these"),
                ("outliers", "Outliers"),
                ("class-token", "What the class token looks at"),
            ],
            [
                ("before", "What the patch looks at, before"),
                ("after", "... and after purification"),
            ],
        ):
            with gr.Row():
                panels += [show_picture(place, label, True, min_width=140) for place, label in row]
        gr.HTML(
            views.hint(
                "Attention by its square root, from dark to bright; outliers are outlined; a white frame marks the chosen patch."
            )
        )

    def draw(request: tuple[str, Settings, str], at_layer: int, at: tuple[int, int]) -> list[Any]:
        drawn = views.draw_layer(studio.inspection(*request), at_layer, at)
        pictures = [drawn.chosen, drawn.outliers, drawn.class_token, drawn.before, drawn.after]
        return [drawn.caption, *pictures]

    def inspect(
        key: str | None,
        by: str,
        each: bool,
        at_layer: int,
        at: tuple[int, int] | None,
        *chosen: str,
    ) -> tuple[Any, ...]:
        request = (key, Settings(*chosen, every_layer=each), by)
        began = time.perf_counter()
        inspection = studio.inspection(*request)
        height, width = inspection.grid
        if at is None or not (at[0] < height and at[1] < width):
            at = (height // 2, width // 2)
        at_layer = min(int(at_layer), inspection.layers)
        slider = gr.Slider(maximum=inspection.layers, value=at_layer)
        done = told(inspection.image, request[1], began)
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
        inspection = studio.inspection(*request)
        x, y = (place * inspection.image.shape[0] / views.HEIGHT for place in event.index)
        at = inspection.patch_at(min(x, inspection.image.shape[1] - 1), y)
        return gr.skip(), at, *draw(request, int(at_layer), at)

    inputs = [picture, detector, everywhere, layer, patch, *settings]
    outputs = [said, asked, patch, layer, panel, caption, *panels]
    button.click(
        answering(inspect, len(outputs)), inputs, outputs, show_progress_on=said, **IN_TURN
    )
    gr.on(
        [detector.input, everywhere.input],
        answering(inspect, len(outputs)),
        inputs,
        outputs,
        **QUIET,
    )
    layer.input(answering(move, 7), [asked, layer, patch], [said, caption, *panels], **QUIET)
    for image in panels:
        image.select(answering(click, 8), [asked, layer], [said, patch, caption, *panels], **QUIET)
    return {said: _INSPECT_HINT, caption: "", panel: gr.update(visible=False), asked: None}


def _compare_tab(
    studio: Studio, picture: gr.State, names: gr.Textbox, settings: list[gr.Dropdown]
) -> dict[Any, Any]:
    """Returns what each of its parts becomes when the picture is another one."""
    other = gr.Dropdown(
        list_methods(), value=_OTHER_METHOD, label="Compare the method with", elem_id="sfp-other"
    )
    button = gr.Button("Compare", variant="primary", size="md", elem_id="sfp-compare")
    said = gr.HTML(_COMPARE_HINT, elem_id="sfp-compare-status")
    with gr.Row(visible=False) as row:
        sides = [show_picture(f"side-{side}", "Result", min_width=140) for side in ("a", "b")]
    shares = gr.HTML(elem_id="sfp-shares")

    def compare(key: str | None, text: str, second: str, *chosen: str) -> tuple[Any, ...]:
        began, first = time.perf_counter(), Settings(*chosen)
        if second == first.method:
            raise SFPError(f"Both methods are {second}; choose another one to compare it with.")
        results = {
            settings.method: studio.segmentation(key, text, settings)
            for settings in (first, Settings(second, first.purification, first.backbone))
        }
        drawn = [
            gr.Image(result.overlay(legend=False), label=title) for title, result in results.items()
        ]
        image = next(iter(results.values())).image
        done = told(
            image, Settings(" and ".join(results), first.purification, first.backbone), began
        )
        return done, gr.Row(visible=True), *drawn, views.comparison(results)

    button.click(
        answering(compare, 5),
        [picture, names, other, *settings],
        [said, row, *sides, shares],
        show_progress_on=said,
        **IN_TURN,
    )
    return {said: _COMPARE_HINT, row: gr.update(visible=False), shares: ""}
