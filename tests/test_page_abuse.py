"""The page's server over HTTP, asked without its widgets: bounded, and alive afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfp.commands.page import listen
from sfp.page.backend import BACKBONES, Backend

pytest.importorskip(
    "gradio", reason="the page needs Gradio: pip install -c constraints.txt -e '.[page]'"
)
from sfp.page.server import allowed_hosts, page_server

TOYLAND = BACKBONES[0].title
CHOICES = ["CLIP", "as published", TOYLAND, "none"]
AROUND = (True, 0)  # a usual background, the least probability
SEGMENT = [None, "sea; sky", *AROUND, *CHOICES]
INSPECT = [None, "SOM", False, 8, None, *CHOICES]


JSON = {"content-type": "application/json"}


class Visitor:
    """One who speaks to the page without a browser."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=60, verify=False)
        self.numbers = {
            event["api_name"]: event["id"]
            for event in self.http.get("/config").json()["dependencies"]
        }
        self.session = secrets.token_hex(6)

    def join(
        self, event: str, data: object, point: object = None, **more: object
    ) -> httpx.Response:
        body = {
            "fn_index": self.numbers[event],
            "data": data,
            "session_hash": self.session,
            "event_data": {"index": point, "value": None},
            **more,
        }
        return self.http.post("/gradio_api/queue/join", content=json.dumps(body), headers=JSON)

    def ask(self, event: str, data: list, point: object = None) -> list:
        """The answer to an event; what Gradio refuses as a list with its sentence."""
        joined = self.join(event, data, point)
        assert joined.status_code == 200, joined.text
        with self.http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if (
                    message.get("msg") == "process_completed"
                    and message["event_id"] == joined.json()["event_id"]
                ):
                    return (
                        message["output"]["data"]
                        if message["success"]
                        else [message["output"]["error"]]
                    )
        raise AssertionError("the page did not answer")

    def upload(self, name: str, content: bytes) -> httpx.Response:
        return self.http.post("/gradio_api/upload", files={"files": (name, content, "image/png")})

    def take(self, name: str, content: bytes) -> str:
        """What is said about an uploaded picture."""
        uploaded = self.upload(name, content)
        assert uploaded.status_code == 200, uploaded.text
        return self.ask(
            "take", [{"path": uploaded.json()[0], "meta": {"_type": "gradio.FileData"}}]
        )[0]


class OneAtATime(Backend):
    """Counts how many threads are at work in it."""

    most = at_work = 0

    def _segmentation(self, *request):
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        time.sleep(0.01)
        try:
            return super()._segmentation(*request)
        finally:
            self.at_work -= 1


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("page")
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield OneAtATime(folder)


@pytest.fixture(scope="module")
def address(backend):
    """The page's server in a thread of this process."""
    with serving(backend) as address:
        yield address


@contextlib.contextmanager
def serving(backend: Backend, **options):
    server = page_server(backend, "127.0.0.1", **options)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def visitor(address):
    """One visitor; afterwards another one is served."""
    yield Visitor(address)
    usual = Visitor(address)
    usual.ask("start", [])
    assert "CLIP on Toyland" in usual.ask("segment", SEGMENT)[0]


def png(width: int, height: int, rows: int | None = None) -> bytes:
    """A grey PNG of zeros that says it has a size, and has some of its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    packed = (
        b"".join(packer.compress(bytes(width + 1)) for _ in range(height if rows is None else rows))
        + packer.flush()
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def text_chunk(size: int) -> bytes:
    info = PngInfo()
    info.add_text("a", "b" * size, zip=True)
    return saved(SMALL, "PNG", pnginfo=info)


def exif(size: int) -> bytes:
    tags = Image.Exif()
    tags[0x010E] = "x" * size
    return saved(SMALL, "JPEG", exif=tags)


SMALL = Image.new("RGB", (64, 48), "teal")
FRAMES = [Image.new("P", (32, 32), number % 7) for number in range(500)]
UNREADABLE, READY = "can&#x27;t be read as a picture", "is ready"
FILES = {
    "30000x30000.png": (lambda: png(30000, 30000, rows=300), UNREADABLE),
    "9000x6000.png": (
        lambda: png(9000, 6000, rows=9),
        "9000x6000 pixels; the page takes 50 million",
    ),
    "thin.png": (lambda: png(1, 20000), "too long and thin"),
    "point.png": (lambda: png(1, 1), READY),
    "head.gif": (
        lambda: (
            b"GIF89a\xff\xff\xff\xff\xf7\0\0"
            + bytes(768)
            + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;"
        ),
        UNREADABLE,
    ),
    "head.webp": (
        lambda: b"RIFF\xff\xff\xff\x7fWEBPVP8X\n\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(50),
        UNREADABLE,
    ),
    "head.tif": (lambda: b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 60, UNREADABLE),
    "frames.gif": (lambda: saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), READY),
    "nan.tif": (
        lambda: saved(Image.fromarray(np.full((40, 50), np.nan, np.float32)), "TIFF"),
        UNREADABLE,
    ),
    "text.png": (lambda: text_chunk(80_000_000), UNREADABLE),
    "exif.jpg": (lambda: exif(60000), READY),
    "profile.jpg": (lambda: saved(SMALL, "JPEG", icc_profile=bytes(200_000)), READY),
    "packed.png": (lambda: b"\x1f\x8b\x08" + zlib.compress(bytes(10_000_000)), UNREADABLE),
    "cut.png": (lambda: saved(SMALL, "PNG")[:80], UNREADABLE),
    "empty.png": (lambda: b"", UNREADABLE),
    "drawing.svg": (
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        UNREADABLE,
    ),
    "page.png": (lambda: b"<html><script>alert(1)</script>", UNREADABLE),
    "page.html": (lambda: b"<html><script>alert(1)</script>", "Invalid file type"),
    "paper.jpg": (lambda: b"%PDF-1.4\n1 0 obj<<>>endobj", UNREADABLE),
    "script.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNREADABLE),
    "both.jpg": (
        lambda: saved(SMALL, "JPEG") + b"<script>alert(1)</script>%PDF-1.4 PK\x03\x04",
        READY,
    ),
}


def test_files_of_every_evil_kind(visitor):
    for name, (make, words) in FILES.items():
        assert words in visitor.take(name, make()), name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("/etc/passwd.png", "passwd.png"),
        ("a/b\\c.png", "bc.png"),
        ("n\0ul.png", "n%00ul.png"),
        ("\u2603 \u6f22.png", "\u2603 \u6f22.png"),
        ("<img src=x onerror=alert(1)>.png", "img src=x onerror=alert(1).png"),
        ("'\"&;.png", "&#x27;%22&amp;;.png"),
        ("x" * 300 + ".png", "x" * 100),
    ],
)
def test_file_names_are_names_only(name, shown, visitor):
    said = visitor.take(name, saved(SMALL, "PNG"))
    assert shown in said and READY in said and "<img" not in said
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert all(folder in path.parents for path in folder.parent.rglob("*passwd*"))


def test_what_is_uploaded_is_never_run(visitor):
    for name, content in (
        ("a.html", b"<script>alert(1)</script>"),
        ("a.svg", FILES["drawing.svg"][0]()),
        ("a.js", b"alert(1)"),
    ):
        path = visitor.upload(name, content).json()[0]
        headers = visitor.http.get(f"/gradio_api/file={path}").headers
        assert (
            headers["content-disposition"].startswith("attachment")
            and headers["content-type"] == "application/octet-stream"
        )
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'")


def test_names_are_bounded_and_shown_as_text(visitor):
    visitor.ask("start", [])
    for names, words in {
        ",".join(f"n{number}" for number in range(5000)): "5000 words",
        "a" * 50_000: "50000 letters",
        "sea, \0\x1b[31m\u202e, ": "the character U+0000",
        "sea, , ": "empty name at place 2",
        "sea; <img src=x onerror=alert(1)>; ": "empty name",
        "sea,sea": "duplicate name",
    }.items():
        assert words in visitor.ask("segment", [None, names, *AROUND, *CHOICES])[0]
    for evil in ("<script>alert(1)</script>", '" onmouseover="x', "\ud83d\ude42"):
        said, _, legend, *_ = visitor.ask("segment", [None, f"sea; {evil}", *AROUND, *CHOICES])
        assert "CLIP on Toyland" in said
        assert "<script" not in legend and '" onmouse' not in legend
    assert visitor.join("segment", [None, "a" * 100_000, *AROUND, *CHOICES]).status_code == 413


UNSOUND = [
    ("segment", []),
    ("segment", [None] * 5),
    ("segment", ["0" * 64, "sea", *AROUND, *CHOICES]),  # another visitor's picture
    ("segment", [None, "sea", *AROUND, ["CLIP"], *CHOICES[1:]]),
    *[
        ("inspect", [*INSPECT[:3], layer, *INSPECT[4:]])
        for layer in (float("nan"), float("inf"), 1e9, True, "8", None, [8])
    ],
    ("inspect", [None, "SOM", [], *INSPECT[3:]]),
    *[("inspect", [None, value, *INSPECT[2:]]) for value in (None, 5, ["SOM"])],
    *[("take", [value]) for value in (None, 5, [], "/etc/passwd", {}, {"path": 5})],
    *[
        ("take", [{"path": path, "meta": {"_type": "gradio.FileData"}}])
        for path in (
            "/etc/passwd",
            "../../etc/passwd",
            "",
            "/tmp",
            "\0",
            "a" * 5000,
            "file:///etc/passwd",
            str(ROOT / "docs/pictures/scene.jpg"),  # a picture, but not an uploaded one
        )
    ],
]


@pytest.mark.parametrize(
    ("event", "data"),
    UNSOUND,
    ids=[f"{event}-{number}" for number, (event, _) in enumerate(UNSOUND)],
)
def test_what_no_widget_sends_is_an_error(event, data, address):
    (said, *_) = Visitor(address).ask(event, data)
    # of what fails before our own functions Gradio shows a notice without a text
    assert said is None or "sfp-error" in said or "maximum value" in said or "not in the" in said


@pytest.mark.parametrize("event", ["take", "segment"])
@pytest.mark.parametrize("key", ['"path"', '"p\\u0061th"'])
def test_the_server_fetches_no_address(event, key, visitor):
    value = {"path": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}
    data = [value] if event == "take" else [None, value, *CHOICES]
    body = {"fn_index": visitor.numbers[event], "data": data, "session_hash": "a"}
    text = json.dumps(body).replace('"path"', key)
    refused = visitor.http.post("/gradio_api/queue/join", content=text, headers=JSON)
    assert refused.status_code == 400 and "sends no such request" in refused.text


def test_wrong_choices_and_clicks_are_errors(visitor):
    visitor.ask("start", [])
    visitor.ask("segment", SEGMENT)
    visitor.ask("inspect", INSPECT)
    assert "less than minimum" in visitor.ask("inspect", [*INSPECT[:3], -1, *INSPECT[4:]])[0]
    assert "greater than maximum" in visitor.ask("inspect", [*INSPECT[:3], 10**9, *INSPECT[4:]])[0]
    assert "not in the list" in visitor.ask("inspect", [None, "nope", *INSPECT[2:]])[0]
    assert (
        "not in the list"
        in visitor.ask("segment", [None, "sea", *AROUND, "../../x", *CHOICES[1:]])[0]
    )
    assert "no pixel x=-5" in visitor.ask("click", [None], [-5, 5])[0]
    assert "no pixel x=1e+300" in visitor.ask("click", [None], [1e300, 5])[0]
    assert (
        "no example 99" in visitor.ask("choose", [], 99)[0]
        and "no example -1" in visitor.ask("choose", [], -1)[0]
    )
    for point in (None, 5, [1], ["a", "b"], [float("nan"), 1], {"a": 1}):
        assert "sfp-error" in visitor.ask("click", [None], point)[0]
    for point in (None, [5, 5], "0", 1.5):
        assert "sfp-error" in visitor.ask("choose", [], point)[0]


def test_broken_bodies(address):
    def post(path: str, **more: object) -> int:
        return httpx.post(f"{address}/gradio_api/{path}", **more).status_code

    for more in ({"fn_index": -1}, {"fn_index": 99}, {"fn_index": None}, {"session_hash": 5}):
        assert Visitor(address).join("segment", SEGMENT, **more).status_code >= 400
    for body in (b"", b"null", b"[]", b"{", b"[" * 60_000, b"\xff", b'{"data": [], "fn_index": 0}'):
        assert post("queue/join", content=body) in (400, 411, 422)
    assert post("queue/join", content=bytes(100_000)) == 413
    multipart = {"content-type": "multipart/form-data; boundary=a"}
    field = b'--a\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--a--'
    assert post("upload", content=b"x", headers=multipart) == 400
    assert post("upload", content=field, headers=multipart) >= 400
    assert post("upload", content=b"{}") == 400
    assert post("upload", files=[("files", (f"{i}.png", b"x")) for i in range(1001)]) == 400
    assert Visitor(address).upload("large.png", bytes((20 << 20) + 1)).status_code == 413
    assert Visitor(address).upload("larger.png", bytes(21 << 20)).status_code == 413
    assert post("upload", content=iter([field]), headers=multipart) == 411  # no length


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *[
            (f"/gradio_api/file={path}", 403)
            for path in (
                "/etc/passwd",
                "/tmp/../etc/passwd",
                "%2fetc%2fpasswd",
                f"{ROOT}/setup.py",
                "/" + "a" * 9000,
            )
        ],
        *[
            (f"/gradio_api/file={path}", 404)
            for path in ("../../etc/passwd", "setup.py", "http://127.0.0.1:1/x", "%00", "")
        ],
        ("/gradio_api/proxy=http://127.0.0.1:1/", 404),
        ("/static/%2e%2e/%2e%2e/setup.py", 403),
        ("/assets/..%2f..%2fsetup.py", 403),
        *[(path, 404) for path in ("/docs", "/openapi.json", "/monitoring", "/login")],
        *[
            (f"/gradio_api/{path}", 404)
            for path in ("info", "run/segment", "call/segment", "vibe-code", "process_recording")
        ],
    ],
)
def test_no_other_path_is_open(path, status, address):
    answer = httpx.get(address + path)
    assert answer.status_code == status and "detail" in answer.json()
    assert "root:" not in answer.text
    assert httpx.post(address + path, content=b"{}").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *[({"host": host}, 400) for host in ("evil.com", "127.0.0.1.evil.com", "", "[", "a b")],
        *[({"host": host}, 200) for host in ("localhost:80", "[::1]:80", "LOCALHOST")],
        *[
            ({"origin": origin}, 403)
            for origin in ("http://evil.com", "null", "http://127.0.0.1:1", "http://[")
        ],
        ({"host": "localhost:80", "origin": "http://localhost:80"}, 200),
    ],
)
def test_other_sites_and_foreign_hosts_are_refused(headers, status, address):
    assert httpx.get(f"{address}/config", headers=headers).status_code == status
    files = {"files": ("a.png", b"x")}
    posted = httpx.post(f"{address}/gradio_api/upload", headers=headers, files=files)
    assert posted.status_code == status


@pytest.mark.parametrize(
    "forwarded", ["evil.com", "evil.com, 127.0.0.1", "evil.com/path", "a b", "", "user@evil.com"]
)
def test_a_forwarded_host_is_not_taken_for_the_pages_own(forwarded, address):
    for headers in ({"x-forwarded-host": forwarded}, {"X-FORWARDED-HOST": forwarded}):
        answer = httpx.get(f"{address}/config", headers=headers)
        assert answer.status_code == 200 and answer.json()["root"] == address
        page = httpx.get(address, headers=headers).text
        assert "evil.com" not in page


def test_hosts_that_are_allowed():
    for host in ("127.0.0.1", "localhost", "::1"):
        assert {"localhost", "127.0.0.1", "[::1]"} == {*allowed_hosts(host)} - {"::1"}
    assert allowed_hosts("127.0.0.2")[-1] == "127.0.0.2"
    assert allowed_hosts("0.0.0.0") == allowed_hosts("workstation.lab") == ["*"]


# over 5 s: eight visitors wait for each other
def test_many_at_once_are_served_one_after_the_other(visitor, address, backend):
    def segment(number: int) -> str:
        one = Visitor(address)
        one.ask("start", [])
        return one.ask("segment", [None, f"sea; sky; name{number}", *AROUND, *CHOICES])[0]

    def leave(number: int) -> None:
        one = Visitor(address)
        one.ask("start", [])
        one.join("segment", [None, f"sea; gone{number}", *AROUND, *CHOICES])
        with one.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": one.session}):
            pass

    backend.most = 0
    with ThreadPoolExecutor(8) as pool:
        gone = [pool.submit(leave, number) for number in range(2)]
        assert all("CLIP on Toyland" in said for said in pool.map(segment, range(6)))
        assert all(one.exception() is None for one in gone)
    assert backend.most == 1


def test_a_full_queue_is_refused(visitor):
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda number: visitor.join(
                    "segment", [None, f"sea; n{number}", *AROUND, *CHOICES]
                ),
                range(60),
            )
        )
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503} and all(
        "Queue is full" in answer.text for answer in answers if answer.status_code == 503
    )
    ends = time.monotonic() + 60
    while visitor.join("start", []).status_code == 503 and time.monotonic() < ends:
        time.sleep(0.2)


def test_clients_that_break_off_or_are_slow(visitor, address):
    port = int(address.rsplit(":", 1)[1])
    before = len(os.listdir("/proc/self/fd"))
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=a\r\n\r\n"
    part = b'--a\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(head + part + bytes(100_000))
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for line in slow:
        line.sendall(b"GET / HTTP/1.1\r\nHo")
    visitor.ask("start", [])
    for line in slow:
        line.close()
    ends = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > before + 15 and time.monotonic() < ends:
        time.sleep(0.1)
    assert len(os.listdir("/proc/self/fd")) <= before + 15


# over 5 s: files are deleted when they are 2 s old, and looked for each second
def test_files_are_deleted(backend):
    with serving(backend, delete_cache=(1, 2)) as address:
        visitor = Visitor(address)
        visitor.ask("start", [])
        visitor.take("a.png", saved(SMALL, "PNG"))
        drawn = visitor.ask("segment", SEGMENT)[1]["value"]["path"]
        uploaded = visitor.upload("b.png", saved(SMALL, "PNG")).json()[0]
        assert Path(uploaded).is_file() and Path(drawn).is_file()
        ends = time.monotonic() + 20
        while Path(uploaded).exists() or Path(drawn).exists():
            assert time.monotonic() < ends, "the files are still there"
            time.sleep(0.2)
        visitor.ask("choose", [], 1)
        assert "CLIP on Toyland" in visitor.ask("segment", SEGMENT)[0]
        (gallery,) = [
            part["props"]["value"]
            for part in visitor.http.get("/config").json()["components"]
            if part["type"] == "gallery"
        ]
        for entry in gallery:
            example = visitor.http.get(f"/gradio_api/file={entry['image']['path']}")
            assert example.status_code == 200


def mixed(address: str, count: int) -> None:
    """Requests of every kind, each in a session of its own."""
    visitor = Visitor(address)
    for number in range(count):
        visitor.session = f"{number % 50}{secrets.token_hex(4)}"
        if number % 5 == 0:
            visitor.ask("start", [])
            visitor.ask("segment", [None, f"sea; sky; n{number}", *AROUND, *CHOICES])
        elif number % 5 == 1:
            visitor.ask("start", [])
            visitor.ask("inspect", [*INSPECT[:3], 1 + number % 12, *INSPECT[4:]])
        elif number % 5 == 2:
            visitor.take(f"{number}.png", saved(Image.new("RGB", (640, 480 + number % 64)), "PNG"))
        elif number % 5 == 3:
            visitor.ask("start", [])
            visitor.ask("compare", [None, "sea; sky", "MaskCLIP", *AROUND, *CHOICES])
        else:
            visitor.take("cut.jpg", saved(SMALL, "JPEG")[:200])
            visitor.join("segment", SEGMENT, fn_index=None)


def resident(process: int | str = "self") -> int:
    """The memory of a process in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) >> 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_memory_stays_level_over_forty_requests(address):
    mixed(address, 10)
    before = resident()
    mixed(address, 40)
    assert resident() - before < 64


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_memory_of_the_program_stays_level(tmp_path):
    """200 mixed requests, then pictures at the bound of 50 million pixels."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "sfp", "page", "--port", "0"]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
        figures = {"started": resident(server.pid)}
        mixed(address, 20)
        figures["warm"] = resident(server.pid)
        mixed(address, 200)
        figures["after 200"] = resident(server.pid)
        large = [
            saved(Image.new("RGBA", (7000, 7000)), "PNG"),
            saved(Image.new("F", (7000, 7000)), "TIFF", compression="tiff_deflate"),
        ]
        for number in range(10):
            assert READY in Visitor(address).take("large.png", large[number % 2])
        figures["after 10 of 49 million pixels"] = resident(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        rest = server.communicate(timeout=30)[0]
    print(figures)
    _, warm, after_200, after_large = figures.values()
    assert "Traceback" not in rest, rest
    assert after_200 - warm < 100 and after_large - warm < 200
