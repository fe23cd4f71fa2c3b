"""The page as a web server: Gradio's application behind a check of each request."""

from __future__ import annotations

import ipaddress
import json
import re

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sfp.page.backend import MAX_FILE_BYTES, Backend
from sfp.page.layout import CSS_FILE, build_page

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO = ("ui-monospace", "DejaVu Sans Mono", "monospace")
_MAX_SESSIONS = 100
_MAX_CONNECTIONS = 200  # a browser holds two or three for each open page
# a browser loads nothing from another host, whatever Gradio's own pages refer to
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
_HEADERS = [
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
]

# what the page asks for; Gradio has further paths, some of which fetch addresses or run ffmpeg
_EVENT, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
_MAX_BODY = {_EVENT: 64 << 10, _UPLOAD: MAX_FILE_BYTES + (64 << 10)}  # bytes
_GET = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/(assets|static)/.+"
    r"|/gradio_api/(queue/data|app_id|startup-events|heartbeat/.+|file=/.*)"
)
_ADDRESS = re.compile(r'"path": "https?:')  # Gradio would download it


def page_server(
    backend: Backend, host: str, delete_cache: tuple[int, int] = (300, 3600), embed_in: str = ""
) -> uvicorn.Server:
    """A server of the page for requests to ``host``; ``run([socket])`` starts it.

    Args:
        backend: what computes.
        host: the address that the server listens on. On a loopback address it is asked by the
            names of the loopback only, so that another site's name can't be made to lead here.
        delete_cache: seconds between two deletions of files, and the age of those deleted.
        embed_in: another site that may show the page in a frame, such as https://example.org.
    """
    page = build_page(backend, delete_cache)
    page.state_session_capacity = _MAX_SESSIONS
    app = FastAPI(openapi_url=None)
    app.add_middleware(BaseHTTPMiddleware, dispatch=check_request)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host))
    theme = gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=_FONTS, font_mono=_MONO
    )
    gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_FILE_BYTES,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        theme=theme,
        css_paths=CSS_FILE,
    )
    page.has_launched = True  # only then Gradio refuses paths of files that were not uploaded
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        headers=[("content-security-policy", f"{_POLICY} {embed_in}".strip()), *_HEADERS],
        limit_concurrency=_MAX_CONNECTIONS,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def allowed_hosts(host: str) -> list[str]:
    """Host names that a request may ask for; any where others on the network are let in."""
    loopback = ["localhost", "127.0.0.1", "[::1]"]
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    return [*loopback, host] if alone else ["*"]


async def check_request(request: Request, answer: RequestResponseEndpoint) -> Response:
    """Pass on what the page itself asks for; refuse other sites' pages, paths and large bodies."""
    headers, path = request.headers, request.scope["path"]
    host = headers.get("host")
    # Gradio would take any name there for the page's own; a proxy passes the host header on
    request.scope["headers"] = [
        pair for pair in request.scope["headers"] if pair[0] != b"x-forwarded-host"
    ]
    if headers.get("origin") not in (None, f"http://{host}", f"https://{host}"):
        return _refuse(403, "Another site's page asked for this; open the page itself.")
    if request.method == "POST" and path in _MAX_BODY:
        if "transfer-encoding" in headers or not headers.get("content-length", "").isdecimal():
            return _refuse(411, "The request doesn't give its length; send a content-length.")
        if int(headers["content-length"][:20]) > _MAX_BODY[path]:
            most = f"{_MAX_BODY[path] >> 10} kB"
            return _refuse(413, f"The request has more than {most}; send a smaller one.")
        if path == _EVENT and not _is_event(await request.body()):
            return _refuse(400, "The page sends no such request; load it again.")
    elif request.method not in ("GET", "HEAD") or not _GET.fullmatch(path):
        return _refuse(404, "The page has no such path.")
    return await answer(request)


def _is_event(body: bytes) -> bool:
    try:
        return not _ADDRESS.search(json.dumps(json.loads(body)))
    except (ValueError, RecursionError):
        return False


def _refuse(status: int, reason: str) -> Response:
    return JSONResponse({"detail": reason}, status)
