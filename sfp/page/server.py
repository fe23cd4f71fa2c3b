"""The page as a web server that speaks to nobody else."""

from __future__ import annotations

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfp.page.layout import CSS_FILE, build_page
from sfp.page.studio import MOST_FILE_BYTES, Studio

# the browser is told to load nothing from any other host, whatever Gradio's own pages refer to
_HEADERS = [
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"),
    (b"referrer-policy", b"no-referrer"),
]
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO = ("ui-monospace", "DejaVu Sans Mono", "monospace")


def page_server(studio: Studio) -> uvicorn.Server:
    """A server of the page over a studio; ``run([listen(...)])`` starts it."""
    app = FastAPI(openapi_url=None)
    theme = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=_FONTS, font_mono=_MONO)
    gr.mount_gradio_app(
        app, build_page(studio), "/", footer_links=[], run_history=False, max_file_size=MOST_FILE_BYTES, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, theme=theme, css_paths=CSS_FILE,
    )  # fmt: skip
    return uvicorn.Server(uvicorn.Config(_keep_to_this_host(app), log_level="warning", timeout_graceful_shutdown=1))


def _keep_to_this_host(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await app(scope, receive, send_with_policy)

    return answer
