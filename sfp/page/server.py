"""The page as a web server that speaks to nobody else."""

from __future__ import annotations

from asyncio import BaseTransport

import gradio as gr
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sfp.page.gate import Gate
from sfp.page.layout import CSS_FILE, build_page
from sfp.page.studio import MOST_FILE_BYTES, Studio

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO = ("ui-monospace", "DejaVu Sans Mono", "monospace")
_MOST_SESSIONS = 100
_MOST_CONNECTIONS = 200  # a browser holds two or three for each open page
_PATIENCE = 30.0  # seconds until a connection has asked for something


def page_server(studio: Studio, host: str) -> uvicorn.Server:
    """A server of the page over a studio, for requests to ``host``; ``run([listen(...)])`` starts it."""
    app, page = FastAPI(openapi_url=None), build_page(studio)
    page.state_session_capacity = _MOST_SESSIONS
    theme = gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=_FONTS, font_mono=_MONO
    )
    gr.mount_gradio_app(
        app, page, "/", footer_links=[], run_history=False, max_file_size=MOST_FILE_BYTES, ssr_mode=False, pwa=False, mcp_server=False,
        enable_monitoring=False, show_error=False, theme=theme, css_paths=CSS_FILE,
    )  # fmt: skip
    gate = Gate(app, page, studio.folder, host)
    return uvicorn.Server(
        uvicorn.Config(
            gate,
            http=_Protocol,
            limit_concurrency=_MOST_CONNECTIONS,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
    )


class _Protocol(H11Protocol):
    """HTTP, for clients that ask within a time."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.loop.call_later(_PATIENCE, lambda: transport.close() if self.cycle is None else None)
