"""Downloads against a server of this machine: interrupted, resumed, verified."""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from owners import SHIPPED

from sfp.datasets.preparation import RECIPES


class Server(ThreadingHTTPServer):
    """Serves a folder's files with byte ranges; a connection breaks off after ``limit`` bytes."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.limit, self.ranges = folder, None, True
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.asked.append((name, wanted))
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        data, start = path.read_bytes(), 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.limit])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)  # a pause is a tenth of it
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def publish(server: Server, name: str, monkeypatch, folder: Path) -> None:
    """Serve a dataset's archives, made of its owners' tree, with their checksums as published."""
    archives = []
    for archive, content in zip(RECIPES[name].archives, CONTENTS[name], strict=True):
        path = server.folder / archive.name
        files = sorted(p for p in (folder / content).rglob("*") if p.is_file())
        base = folder if name in ("voc21", "ade20k") or content == "val2017" else folder / content
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as file:
                for member in files:
                    file.write(member, member.relative_to(base))
        else:
            with tarfile.open(path, "w") as file:
                for member in files:
                    file.add(member, member.relative_to(base))
        kind = archive.checksum.partition(":")[0] or "md5"
        archives.append(
            dataclasses.replace(
                archive, checksum=f"{kind}:{hashlib.new(kind, path.read_bytes()).hexdigest()}"
            )
        )
    monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], archives=tuple(archives)))


CONTENTS = {
    "voc21": ["VOCdevkit"],
    "ade20k": ["ADEChallengeData2016"],
    "coco_stuff164k": ["val2017", "stuffthingmaps"],
    "coco_object": ["val2017", "stuffthingmaps"],
}


@pytest.mark.parametrize("name", CONTENTS)
def test_download_and_prepare(name, server, tmp_path, monkeypatch, tool):
    SHIPPED[name](tmp_path / "owners")
    publish(server, name, monkeypatch, tmp_path / "owners")
    arguments = (
        "prepare_dataset",
        name,
        "--download",
        "--mirror",
        server.url,
        "--out",
        tmp_path / "data",
        "--workers",
        1,
    )
    assert tool(*arguments)[::2] == (0, "")
    assert (
        tool("check_dataset", name, "--data", tmp_path / "data", "--subset", "--workers", 1)[0] == 0
    )
    assert len(server.asked) == len(CONTENTS[name])
    assert tool(*arguments)[0] == 0 and len(server.asked) == len(
        CONTENTS[name]
    )  # nothing is fetched twice


def voc(server: Server, tmp_path: Path, monkeypatch, tool):
    """A function that runs the download of voc21, and the archive's bytes."""
    SHIPPED["voc21"](tmp_path / "owners")
    publish(server, "voc21", monkeypatch, tmp_path / "owners")
    (path,) = server.folder.iterdir()
    data = tmp_path / "data"

    def run():
        return tool(
            "prepare_dataset", "voc21", "--download", "--mirror", server.url + "/", "--out", data
        )

    return run, path


def test_a_broken_connection_is_taken_up_again(server, tmp_path, monkeypatch, tool):
    run, path = voc(server, tmp_path, monkeypatch, tool)
    size = path.stat().st_size
    server.limit = size // 3
    assert run()[0] == 0  # each piece brings something new, so it goes on by itself
    starts = [int(wanted[6:-1]) if wanted else 0 for _, wanted in server.asked]
    assert starts == [0, size // 3, size // 3 * 2, *([size // 3 * 3] if size % 3 else [])]
    assert (tmp_path / f"data/downloads/{path.name}").read_bytes() == path.read_bytes()


def test_an_interrupted_download_is_resumed_by_the_next_run(server, tmp_path, monkeypatch, tool):
    run, path = voc(server, tmp_path, monkeypatch, tool)
    partial = tmp_path / f"data/downloads/{path.name}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(path.read_bytes()[:5000])
    server.limit = 0
    code, _, error = run()
    assert (
        code == 2 and "broke off after 5000 bytes" in error and "the same command goes on" in error
    )
    assert partial.stat().st_size == 5000 and len(server.asked) == 6
    server.limit = None
    assert run()[0] == 0 and server.asked[-1][1] == "bytes=5000-"
    assert not partial.exists()


@pytest.mark.parametrize(("ranges", "begun"), [(False, 5000), (True, None), (True, "longer")])
def test_other_servers_and_beginnings(ranges, begun, server, tmp_path, monkeypatch, tool):
    """A server without ranges, a part that is whole, and one that is longer than the file."""
    run, path = voc(server, tmp_path, monkeypatch, tool)
    data = path.read_bytes()
    server.ranges = ranges
    partial = tmp_path / f"data/downloads/{path.name}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(data + b"more" if begun == "longer" else data[:begun])
    assert run()[0] == 0
    assert partial.with_name(path.name).read_bytes() == data


def test_a_wrong_checksum_is_refused(server, tmp_path, monkeypatch, tool):
    run, path = voc(server, tmp_path, monkeypatch, tool)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    code, _, error = run()
    assert code == 2 and "not the published" in error and "was deleted" in error
    assert (
        not list((tmp_path / "data/downloads").glob("*"))
        and not (tmp_path / "data/VOCdevkit").exists()
    )


@pytest.mark.parametrize("content", ["one bit", "cut", "empty", "a web page"])
def test_an_archive_that_lies_there_is_verified_like_a_fresh_one(
    content, server, tmp_path, monkeypatch, tool
):
    run, path = voc(server, tmp_path, monkeypatch, tool)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    changed = {"one bit": data, "cut": data[:900], "empty": b"", "a web page": b"<html>404</html>"}
    there = tmp_path / f"data/downloads/{path.name}"
    there.parent.mkdir(parents=True)
    there.write_bytes(changed[content])
    code, _, error = run()
    assert code == 2 and f"{there} has the MD5" in error and "not the published" in error
    assert there.read_bytes() == changed[content] and not server.asked
    there.write_bytes(path.read_bytes())
    assert run()[0] == 0 and not server.asked


def test_an_archive_without_a_checksum_that_is_damaged_is_not_unpacked(
    server, tmp_path, monkeypatch, tool
):
    """COCO-Stuff's maps: each file in a zip has a checksum of its own."""
    SHIPPED["coco_stuff164k"](tmp_path / "owners")
    publish(server, "coco_stuff164k", monkeypatch, tmp_path / "owners")
    recipe = RECIPES["coco_stuff164k"]
    images, maps = recipe.archives
    archives = (images, dataclasses.replace(maps, checksum=""))
    monkeypatch.setitem(RECIPES, "coco_stuff164k", dataclasses.replace(recipe, archives=archives))
    data = bytearray((server.folder / maps.name).read_bytes())
    for damaged in (data[:-100], data[:60] + bytes([data[60] ^ 255]) + data[61:]):
        there = tmp_path / f"data/downloads/{maps.name}"
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(damaged)
        arguments = ("--download", "--mirror", server.url, "--out", tmp_path / "data")
        code, _, error = tool("prepare_dataset", "coco_stuff164k", *arguments)
        assert code == 2 and "can't be unpacked" in error


def test_an_unsafe_archive_is_refused(server, tmp_path, monkeypatch, tool):
    SHIPPED["ade20k"](tmp_path / "owners")
    with zipfile.ZipFile(server.folder / "ADEChallengeData2016.zip", "w") as file:
        file.writestr("ADEChallengeData2016/images/validation/../../../../evil.jpg", "x")
    data = (server.folder / "ADEChallengeData2016.zip").read_bytes()
    archive = dataclasses.replace(
        RECIPES["ade20k"].archives[0], checksum=f"sha1:{hashlib.sha1(data).hexdigest()}"
    )
    monkeypatch.setitem(
        RECIPES, "ade20k", dataclasses.replace(RECIPES["ade20k"], archives=(archive,))
    )
    code, _, error = tool(
        "prepare_dataset",
        "ade20k",
        "--download",
        "--mirror",
        server.url,
        "--out",
        tmp_path / "data",
    )
    assert code == 2 and "would leave the folder" in error and not list(tmp_path.rglob("evil.jpg"))


def test_nothing_to_fetch(server, tmp_path, tool):
    code, _, error = tool(
        "prepare_dataset", "voc21", "--download", "--mirror", server.url, "--out", tmp_path
    )
    assert code == 2 and "404" in error and "--source" in error
    code, _, error = tool("prepare_dataset", "city_scapes", "--download", "--out", tmp_path)
    assert code == 2 and "can't be downloaded by a program" in error and "registration" in error
    code, _, error = tool(
        "prepare_dataset", "voc21", "--mirror", server.url, "--source", tmp_path, "--out", tmp_path
    )
    assert code == 2 and "add --download" in error
    code, _, error = tool(
        "prepare_dataset",
        "voc21",
        "--download",
        "--mirror",
        "http://127.0.0.1:9",
        "--out",
        tmp_path,
    )
    assert code == 2 and "can't be reached" in error
