"""Ray Data: the labels of one process, on two nodes too, and when an actor is killed.

Ray is no part of the tests' own set: it is skipped where it isn't installed.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from many.test_run import expected, go, labels  # noqa: F401
from many_photos import COUNT, NAMES, jpeg, photos, recipe  # noqa: F401
from PIL import Image

import sfp
from sfp.errors import SFPError
from sfp.many.on_ray import SegmentBatch, connect, on_ray

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each on this machine."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def actors():
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker" in " ".join(process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.mark.slow
def test_two_nodes_of_which_an_actor_is_killed(photos, recipe, expected, cluster, tmp_path):  # noqa: F811
    """Ray starts the actor again; what it had finished is not done twice."""
    killed = []

    def kill():
        while not killed:
            done = list(tmp_path.rglob("*_labels.png"))
            found = actors() if len(done) >= 3 else []
            if found:
                found[0].kill()
                killed.append({file: file.stat().st_mtime_ns for file in done})
            time.sleep(0.005)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = go(photos, tmp_path, recipe, on_ray(recipe, tmp_path, cluster, 2), quiet=True)
    killer.join(1)
    assert killed, "no actor was killed"
    assert summary.failed == 0 and summary.segmented + summary.done_before == COUNT
    assert labels(tmp_path) == expected
    assert all(file.stat().st_mtime_ns == time for file, time in killed[0].items())


@pytest.mark.slow
def test_ones_own_program(photos, recipe, cluster, tmp_path):  # noqa: F811
    """Parquet in, Parquet out, and a folder of pictures."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    files = sorted((photos / "b/c").glob("*.jpg"))[:5]
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    rows.append({"bytes": b"no", "path": "broken.jpg"})
    table = arrow.table({"image": rows, "id": list(range(6))})
    parquet.write_table(table, tmp_path / "photos.parquet")
    connect(cluster)
    options = dict(names=NAMES, model="Toyland", method="CLIP", device="cpu", **recipe.options)
    (
        ray.data.read_parquet(str(tmp_path / "photos.parquet"))
        .map_batches(SegmentBatch, fn_constructor_kwargs=options, concurrency=1, batch_size=3)
        .write_parquet(str(tmp_path / "labels"))
    )
    found = parquet.read_table(tmp_path / "labels").to_pylist()
    segmenter = sfp.Segmenter("CLIP", "Toyland", device="cpu", **recipe.options)
    assert sorted(row["id"] for row in found) == list(range(6))
    for row in found:
        assert set(row) == {"id", "labels", "areas", "error"}
        if row["id"] == 5:
            assert "can't be read as an image" in row["error"] and not row["labels"]
            continue
        alone = segmenter(files[row["id"]], NAMES)
        (tmp_path / "x.png").write_bytes(row["labels"])
        assert (np.asarray(Image.open(tmp_path / "x.png")) == alone.labels).mean() > 0.999
        assert json.loads(row["areas"]) == pytest.approx(alone.areas, abs=1e-3)
    images = ray.data.read_images(str(photos / "b/c"), include_paths=True).limit(2)
    rows = images.map_batches(
        SegmentBatch, fn_constructor_kwargs=options, concurrency=1, batch_size=2
    ).take_all()
    ray.shutdown()
    assert [row["error"] for row in rows] == ["", ""] and all("path" in row for row in rows)


@pytest.mark.slow
def test_what_stops_a_run(photos, recipe, cluster, tmp_path):  # noqa: F811
    wrong = replace(recipe, model="ViT-B/16", pretrained="nowhere")
    with pytest.raises(SFPError, match="nowhere"):
        go(photos, tmp_path / "a", wrong, on_ray(wrong, tmp_path / "a", cluster, 1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b").write_text("")  # where a folder would be made
    engine = on_ray(recipe, tmp_path / "out", cluster, 1)
    with pytest.raises(SFPError, match="out/b can't be written"):
        go(photos, tmp_path / "out", recipe, engine, quiet=True)


class TestAddresses:
    def wrong(self, address, words, within):
        begun = time.monotonic()
        with pytest.raises(SFPError, match=words):
            connect(address)
        assert time.monotonic() - begun < within

    @pytest.mark.parametrize("address", ["nowhere", "127.0.0.1", "127.0.0.1:x", ":5", "ray://a"])
    def test_no_address(self, address):
        self.wrong(address, f"--address {address} is none; write HOST:PORT", 1)

    def test_nothing_listens(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        for each in (address, f"ray://{address}"):
            self.wrong(each, f"no Ray cluster at {each} .*; start one with ray start --head", 6)

    def test_an_unknown_host(self):
        self.wrong("no.such.host.invalid:6379", r"no Ray cluster at no.such.host.invalid", 8)

    def test_a_port_that_is_none(self):
        self.wrong("127.0.0.1:99999", r"no Ray cluster at 127.0.0.1:99999", 1)


def test_columns_that_are_missing(toyland_clip):
    segment = SegmentBatch.__new__(SegmentBatch)
    segment.column = None
    with pytest.raises(SFPError, match="no column 'of pictures', only id; give column=NAME"):
        segment({"id": np.arange(2)})


def test_options_that_do_not_fit(tool, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    given = (tmp_path / "a.jpg", "--names", "a,b", "--model", "Toyland", "--out", tmp_path / "out")
    for more, words in (
        (("--address", "x:1"), "--address is Ray's; add --engine ray"),
        (("--actors", 2), "--actors is Ray's; add --engine ray"),
        (("--engine", "ray", "--processes", 2), "--processes is for one machine without Ray"),
        (("--engine", "ray", "--actors", 0), "--actors 0 must be at least 1"),
        (("--engine", "ray", "--device", "cuda:1"), "Ray gives each actor a GPU"),
        (("--engine", "ray", "--address", "127.0.0.1:1"), "no Ray cluster at 127.0.0.1:1"),
    ):
        code, _, error = tool("segment", *given, *more)
        assert code == 2 and words in error
        assert not (tmp_path / "out").exists()
