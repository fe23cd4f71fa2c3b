"""What stands before Gradio: who may ask, for what, and how much. Everything else is refused in a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfp.page.studio import MOST_FILE_BYTES

MOST_REQUEST_BYTES = 64 << 10  # of what the widgets send
MOST_KEPT_FILES, MOST_KEPT_BYTES = 200, 1 << 30  # uploads, drawings and text vectors together
_MOST_UPLOAD_BYTES = MOST_FILE_BYTES + (64 << 10)
_PATIENCE = 120.0  # seconds for the whole of a request
_JOIN, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
_FILES = "/gradio_api/file="
_EVENTS = "/gradio_api/queue/data"
_PLACES = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    _EVENTS,
    "/gradio_api/app_id",
    "/gradio_api/startup-events",
)
_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/", f"{_FILES}/")

# a browser loads nothing from any other host, whatever Gradio's own pages refer to, and runs nothing that was uploaded
_HEADERS = [(b"referrer-policy", b"no-referrer"), (b"x-content-type-options", b"nosniff")]
_PAGE_POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
)
_FILE_POLICY = b"default-src 'none'; sandbox"

# what a widget sends; choices and ranges are Gradio's to check
_SOUND: dict[type, Callable[[Any], bool]] = {
    gr.State: lambda value: value is None,  # the server has its own
    gr.Textbox: lambda value: isinstance(value, str),
    gr.Dropdown: lambda value: isinstance(value, str),
    gr.Checkbox: lambda value: isinstance(value, bool),
    gr.Slider: lambda value: type(value) is int,
    gr.UploadButton: lambda value: isinstance(value, dict) and isinstance(value.get("path"), str),
}


class Gate:
    """An ASGI application in front of the page's own.

    Passed on are: requests by an address or a name of this machine, so that no other site's name can be made to lead here;
    from no other site's page; for what the page itself asks for; of bounded size and time. Before each request that brings
    something, the oldest files are deleted until the bounds hold.

    Args:
        app: the application behind it.
        page: whose events may be asked for.
        folder: where everything is kept that requests bring; what lies there now stays.
        host: the address or name that the server listens on.
    """

    def __init__(self, app: ASGIApp, page: gr.Blocks, folder: Path, host: str):
        self._app, self._folder = app, folder
        self._names = own_names(host)
        self._inputs = {
            number: [type(block) for block in event.inputs] for number, event in page.fns.items()
        }
        self._clicked = {
            number: type(page.blocks[block])
            for number, event in page.fns.items()
            for block, kind in event.targets
            if kind == "select"
        }
        self._trimming = asyncio.Lock()
        self._stay = frozenset(path for path in folder.rglob("*") if path.is_file())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        policy = _FILE_POLICY if path.startswith(_FILES) else _PAGE_POLICY
        started = False

        async def send_with_policy(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                if path == _UPLOAD and message["status"] == 500:
                    raise _NotKept
                message["headers"] = [
                    *message["headers"],
                    *_HEADERS,
                    (b"content-security-policy", policy),
                ]
                started = True
            await send(message)

        try:
            self._require_own(Headers(scope=scope))
            if scope["method"] in ("GET", "HEAD") and (
                path in _PLACES or path.startswith(_FOLDERS)
            ):
                await self._app(scope, receive, send_with_policy)
            elif scope["method"] == "POST" and path in (_JOIN, _UPLOAD):
                bounded = _bounded(
                    Headers(scope=scope),
                    receive,
                    MOST_REQUEST_BYTES if path == _JOIN else _MOST_UPLOAD_BYTES,
                )
                if path == _JOIN:
                    bounded = _replay(self._cleaned(await _whole(bounded)), receive)
                async with self._trimming:
                    await run_in_threadpool(trim, self._folder, self._stay)
                await self._app(scope, bounded, send_with_policy)
            else:
                raise HTTPException(404, "The page has no such place.")
        except ClientDisconnect:
            pass  # nobody is there to be told
        except RuntimeError:
            if not (started and path == _EVENTS):
                raise
            await send(
                {"type": "http.response.body"}
            )  # of an unknown session: Gradio has said so already
        except _NotKept:
            await _refuse(
                HTTPException(400, "The upload has no file that can be kept; choose another one."),
                scope,
                receive,
                send_with_policy,
            )
        except HTTPException as refused:
            await _refuse(refused, scope, receive, send_with_policy)

    def _require_own(self, headers: Headers) -> None:
        asked = headers.get("host", "").lower()
        if not _is_own(asked, self._names):
            raise HTTPException(
                403,
                f"This page answers to its address, {' and '.join(sorted(self._names))} only; open it by one of these.",
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and _place(origin) != asked
        if foreign or (
            site not in ("same-origin", "none") and headers.get("sec-fetch-mode") != "navigate"
        ):
            raise HTTPException(403, "Another site's page asked for this; open the page itself.")

    def _cleaned(self, body: bytes) -> bytes:
        """What Gradio gets of a request for an event: the keys that the page sends, each of its type."""
        refusal = HTTPException(
            400, "The page sends no such request; load it again and use its widgets."
        )
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise refusal from None
        number, session, values = (
            asked.get(key) if isinstance(asked, dict) else None
            for key in ("fn_index", "session_hash", "data")
        )
        if type(number) is not int or number not in self._inputs or not isinstance(values, list):
            raise refusal
        if (
            not isinstance(session, str)
            or not session.isalnum()
            or not session.isascii()
            or len(session) > 64
        ):
            raise refusal
        kinds = self._inputs[number]
        if len(values) != len(kinds) or not all(
            _SOUND[kind](value) for kind, value in zip(kinds, values, strict=True)
        ):
            raise refusal
        values = [
            {"path": value["path"], "meta": {"_type": "gradio.FileData"}}
            if isinstance(value, dict)
            else value
            for value in values
        ]
        if any(
            isinstance(value, dict) and not _lies_in(value["path"], self._folder)
            for value in values
        ):
            raise refusal
        event = None
        if number in self._clicked:
            data = asked.get("event_data")
            place = data.get("index") if isinstance(data, dict) else None
            if not (
                type(place) is int if self._clicked[number] is gr.Gallery else _is_point(place)
            ):
                raise refusal
            event = {"index": place, "value": None}
        trigger = asked.get("trigger_id") if type(asked.get("trigger_id")) is int else None
        return json.dumps(
            dict(
                data=values,
                event_data=event,
                fn_index=number,
                trigger_id=trigger,
                session_hash=session,
            )
        ).encode()


class _NotKept(Exception):
    """Gradio failed at an upload."""


async def _refuse(refused: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": refused.detail}, refused.status_code)(scope, receive, send)


def own_names(host: str) -> frozenset[str]:
    """Names that lead to this machine, besides addresses: where it listens to itself alone, only ``localhost``."""
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    names = (
        {"localhost"}
        if alone
        else {
            "localhost",
            host,
            socket.gethostname(),
            f"{socket.gethostname()}.local",
            socket.getfqdn(),
        }
    )
    return frozenset(name.lower() for name in names if not _is_address(name))


def trim(
    folder: Path,
    stay: Iterable[Path] = (),
    most_files: int = MOST_KEPT_FILES,
    most_bytes: int = MOST_KEPT_BYTES,
) -> None:
    """Delete the oldest files below a folder, but for those that stay, until the bounds hold."""
    stay, found = set(stay), []
    for where, _, names in os.walk(folder):
        for path in (Path(where, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # a partial file got its name meanwhile
                if path not in stay:
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
    size = 0
    for number, (_, own, path) in enumerate(sorted(found, reverse=True)):
        size += own
        if number >= most_files or size > most_bytes:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others lie there too
                path.parent.rmdir()


def _is_own(asked: str, names: frozenset[str]) -> bool:
    try:
        name = urlsplit(f"//{asked}").hostname or ""
    except ValueError:
        return False
    return name in names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _place(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_point(place: Any) -> bool:
    numbers = (
        isinstance(place, list)
        and len(place) == 2
        and all(type(value) in (int, float) for value in place)
    )
    return numbers and all(math.isfinite(value) for value in place)


def _lies_in(path: str, folder: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(folder.resolve()) and Path(path).is_file()
    except (OSError, ValueError):
        return False


def _bounded(headers: Headers, receive: Receive, most: int) -> Receive:
    """``receive`` that raises 413 where a body is too large and 408 where it takes too long."""
    too_large = HTTPException(
        413,
        f"The request has more than {most >> 10} kB; a picture may have {MOST_FILE_BYTES >> 20} MB.",
    )
    announced = headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:20]) > most:
        raise too_large
    ends, got, done = time.monotonic() + _PATIENCE, 0, False

    async def receive_bounded() -> Message:
        nonlocal got, done
        if done:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
        except asyncio.TimeoutError:  # noqa: UP041 - another class before Python 3.11
            raise HTTPException(
                408, f"The request was not complete after {_PATIENCE:.0f} seconds; send it again."
            ) from None
        got += len(message.get("body", b""))
        done = not message.get("more_body", False)
        if got > most:
            raise too_large
        return message

    return receive_bounded


async def _whole(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    left = [body]

    async def receive_again() -> Message:
        return (
            {"type": "http.request", "body": left.pop(), "more_body": False}
            if left
            else await receive()
        )

    return receive_again
