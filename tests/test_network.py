"""Downloads that go wrong, from a server of this machine: one sentence in time, nothing half kept,
and the next try goes on.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_clips
from conftest import ROOT
from huggingface_hub import constants
from test_files import files, files_limited

import sfp
from sfp.errors import SFPError
from sfp.files import file_digest
from sfp.network import download, hub_file, why_unreached

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATIENCE = 0.2  # seconds, instead of 10
STATED = 6 * (PATIENCE + 0.02) + 2  # docs/supply.md's six tries, and room for a busy machine


class Server(ThreadingHTTPServer):
    """Serves files, also as the hub does; ``fault`` is what goes wrong with those named in
    ``faulty``, with all if it is empty.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.served: dict[str, bytes] = {"file": CONTENT}
        self.fault, self.faulty, self.ranges = "", "", True
        self.asked: list[tuple[str, str, str | None]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Who hangs up is what is tested."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        wanted = self.headers.get("Range")
        server.asked.append((self.command, name, wanted))
        fault = server.fault if server.faulty in ("", name) else ""
        data, body = server.served.get(name), self.command == "GET"
        status, _, where = fault.partition(" ")
        if data is None or status.isdigit():
            self.send_response(int(status) if status.isdigit() else 404)
            if name != "file" and data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            if status == "401":
                self.send_header("X-Error-Code", "RepoNotFound")
            if where:
                self.send_header("Location", where)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "never answers" or (fault == "stalls at the file" and body):
            server.ended.wait(30)
            return
        start = int(wanted[6:-1]) if wanted and server.ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if fault == "a web page":
            data = b"<html>Please log in</html>"
            self.send_header("Content-Type", "text/html")
        else:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        if fault == "another file":
            data = data[::-1]
        length = len(data) - start
        told = {"too long": length + 1000, "too short": length - 1000}.get(fault, length)
        self.send_header("Content-Length", str(told if body else length))
        self.end_headers()
        if not body:
            return
        half = len(data) // 2
        if fault in ("cuts", "stalls"):
            self.wfile.write(data[start : max(start, half)])
            if fault == "stalls":
                server.ended.wait(30)
            return
        self.wfile.write(data[start:])

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    form = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", form)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", PATIENCE)
    pause = time.sleep  # between tries: ours, and the hub's of 1 s and more
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(seconds / 10))
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


def wrong(path: Path) -> str | None:
    return None if file_digest(path, "sha256") == SHA256 else "has another digest"


def refusal(call, words: str, within: float) -> None:
    """One sentence with these words, in time."""
    started = time.monotonic()
    with pytest.raises(SFPError, match=words) as caught:
        call()
    assert time.monotonic() - started < within
    said = str(caught.value)
    assert said.endswith("do this.") and said.count(". ") == 0, said


HALF = len(CONTENT) // 2
REFUSALS = {  # fault: what is said of the address, the bytes that are kept
    "404": (r"can't be fetched \(HTTP Error 404: Not Found\)", None),
    "403": (r"can't be fetched \(HTTP Error 403: Forbidden\)", None),
    "500": (r"can't be reached \(HTTP Error 500: Internal Server Error\)", None),
    "503": (r"can't be reached \(HTTP Error 503: Service Unavailable\)", None),
    "302 file": ("leads in a circle", None),
    "302 file:///etc/passwd": (r"leads nowhere \(HTTP Error 302", None),
    "a web page": ("sends a web page instead of the file", None),
    "never answers": (r"can't be reached \(timed out\)", None),
    "stalls": (rf"broke off after {HALF} bytes \(timed out\)", HALF),
    "cuts": (rf"broke off after {HALF} bytes \({len(CONTENT)} bytes were announced\)", HALF),
    "another file": ("has another digest, and was deleted", None),
    "too short": ("has another digest, and was deleted", None),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_each_fault_ends_in_one_sentence_and_the_next_try_goes_on(fault, server, tmp_path):
    words, kept = REFUSALS[fault]
    server.fault, target = fault, tmp_path / "out/weights"

    def fetch():
        download(f"{server.url}/file", target, wrong, "do this")

    refusal(fetch, f"^{server.url}/file {words}", STATED)
    assert files(tmp_path) == ([] if kept is None else ["out/weights.partial"])
    server.fault, server.asked = "", []
    fetch()
    assert server.asked == [("GET", "file", kept and f"bytes={kept}-")]
    assert target.read_bytes() == CONTENT and files(tmp_path) == ["out/weights"]


def test_a_length_that_is_too_long_does_no_harm(server, tmp_path):
    """The server says by the next request that nothing is lacking; without ranges it can't."""
    server.fault = "too long"
    download(f"{server.url}/file", tmp_path / "weights", wrong, "do this")
    assert (tmp_path / "weights").read_bytes() == CONTENT
    server.ranges, again = False, tmp_path / "again"
    words = f"broke off after {len(CONTENT)} bytes"
    refusal(lambda: download(f"{server.url}/file", again, wrong, "do this"), words, STATED)
    assert not again.exists()


def test_a_server_without_ranges_that_cuts_elsewhere_each_time_is_given_up(server, tmp_path):
    """What it sends again brings nothing new."""
    server.ranges, server.fault = False, "cuts"
    (tmp_path / "weights.partial").write_bytes(CONTENT[: HALF + 5])
    refusal(
        lambda: download(f"{server.url}/file", tmp_path / "weights", wrong, "do this"),
        f"broke off after {HALF} bytes", STATED,
    )  # fmt: skip
    assert len(server.asked) == 6


def test_redirects_are_followed(server, tmp_path):
    server.served["moved"], server.faulty = b"", "moved"
    server.fault = "302 /file"
    download(f"{server.url}/moved", tmp_path / "weights", wrong, "do this")
    assert (tmp_path / "weights").read_bytes() == CONTENT


@pytest.fixture
def disk_for_reading_only(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fetch_from_the_hub() -> Path | None:
    return hub_file("made/up", "file", "The weights 'x' of Y", "do this")


def test_disks_that_take_nothing(server, tmp_path, disk_for_reading_only, monkeypatch):
    url = f"{server.url}/file"
    with files_limited(HALF):
        words = r"weights\.partial can't be written \(File too large\); make room, .*goes on"
        refusal(lambda: download(url, tmp_path / "weights", wrong, "do this"), words, STATED)
        words = r"hub can't be written \(File too large\); set HF_HOME"
        refusal(fetch_from_the_hub, words, STATED)
    assert files(tmp_path / "hub/models--made--up/blobs") == []
    download(url, tmp_path / "weights", wrong, "do this")
    assert server.asked[-1] == ("GET", "file", f"bytes={HALF}-")
    assert fetch_from_the_hub().read_bytes() == CONTENT
    words = r"weights\.partial can't be written \(Read-only file system\)"
    refusal(lambda: download(url, disk_for_reading_only / "weights", wrong, "do this"), words, 2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk_for_reading_only / "hub"))
    refusal(fetch_from_the_hub, r"hub can't be written \(Read-only file system\); set HF_HOME", 2)


HUB_REFUSALS = {
    "503": (r"file can't be fetched \(.*503 Service Unavailable", 6),
    "403": (r"file can't be fetched \(.*403 Forbidden", 3),
    "401": (r"file can't be fetched \(there is no such repository, or a private one\)", 3),
    "302 file": ("file leads in a circle", 3),
    "a web page": (r"file can't be fetched \(.*missing the 'X-Repo-Commit' header", 3),
    "never answers": (r"file doesn't answer within 0\.2 seconds", 3),
    "stalls": (r"file can't be fetched \(.*timed out", STATED + 1),
    "cuts": (r"file can't be fetched \(.*peer closed connection", STATED + 1),
    "too short": (r"file can't be fetched \(Consistency check failed: .*size 102400", 3),
    "another file": (r"file has the SHA-256 .*, not the published .*, and was deleted", 3),
}


@pytest.mark.parametrize("fault", HUB_REFUSALS)
def test_the_hub_likewise(fault, server, tmp_path):
    words, within = HUB_REFUSALS[fault]
    server.fault = fault
    refusal(fetch_from_the_hub, words, within)
    blobs = tmp_path / "hub/models--made--up/blobs"
    assert not blobs.exists() or files(blobs) == []
    assert not list(tmp_path.rglob("file"))
    server.fault = ""
    assert fetch_from_the_hub().read_bytes() == CONTENT
    server.asked = []
    assert fetch_from_the_hub().read_bytes() == CONTENT and not server.asked


def test_a_file_that_the_hub_lacks(server):
    assert hub_file("made/up", "none", "The weights", "do this") is None


def test_why_unreached(server):
    assert why_unreached(f"{server.url}/file") is why_unreached(f"{server.url}/none") is None
    assert "there is no network or no server at" in why_unreached("http://127.0.0.1:9")
    server.fault = "never answers"
    assert "doesn't answer within 0.2 seconds" in why_unreached(f"{server.url}/file")


def test_whoever_loads_weights_by_name(server, tmp_path):
    """CLIPs by tag and repository, a SAM, timm's model, a SAM 2: each says what to bring, and the
    repository's next try succeeds.
    """
    from sfp.backbones import load_backbone, load_sam
    from sfp.regions import sam2

    folder = tiny_clips.save("clip", tmp_path / "made")
    clip = sfp.load_clip(f"local-dir:{folder}", device="cpu")
    server.served |= {path.name: path.read_bytes() for path in folder.iterdir()}
    names = ("config.json", "model.safetensors", "open_clip_model.safetensors")
    server.served |= {name: CONTENT for name in names if name not in server.served}
    server.fault = "another file"
    calls = {
        r"open_clip_model\.safetensors has the SHA-256.*bring the file ViT-B-16\.pt.*Toyland model":
            lambda: sfp.load_clip("ViT-B/16", device="cpu"),
        "open_clip_config.json has the SHA-256.*bring its files": lambda: sfp.load_clip(
            "hf-hub:made/up", device="cpu"),
        r"sam-vit-base/.*config\.json has the SHA-256.*sam_weights": lambda: load_sam(
            "facebook/sam-vit-base", "sam"),
        r"vit_base_patch8_224\.dino/.*model\.safetensors has the SHA-256.*dino_weights":
            lambda: load_backbone("vit_base_patch8_224.dino", clip, "dino"),
        r"sam2/.*config\.json has the SHA-256.*model=FOLDER": lambda: sam2._load("my/sam2"),
    }  # fmt: skip
    for words, call in calls.items():
        with pytest.raises(SFPError, match=words):
            call()
    assert not [name for name in files(tmp_path / "hub") if "/blobs/" in name]
    server.fault = ""
    again = sfp.load_clip("hf-hub:made/up", device="cpu")
    assert again.fingerprint == clip.fingerprint


def test_the_command_with_the_documented_variables(server, tmp_path):
    """Over 5 s: a fresh interpreter, since huggingface_hub reads the environment at its import."""
    server.fault = "never answers"
    server.served["open_clip_model.safetensors"] = CONTENT
    told = dict(HF_ENDPOINT=server.url, HF_HOME=str(tmp_path), HF_HUB_DOWNLOAD_TIMEOUT="1")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", (
        "import sfp, sys\n"
        "try: sfp.load_clip('ViT-B/16', device='cpu')\n"
        "except sfp.SFPError as error: sys.exit(f'error: {error}')"
    )]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(
        command, env=environment | told | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert time.monotonic() - started < 60  # the imports included
    assert done.returncode == 1
    assert "doesn't answer within 1 seconds" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and "bring the file ViT-B-16.pt" in done.stderr
