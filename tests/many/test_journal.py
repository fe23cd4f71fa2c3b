"""What is done is known again: after kills and damage, for these settings alone, by all shards."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT
from test_files import files_limited

from sfp.errors import SFPError
from sfp.many.items import FileItem
from sfp.many.journal import Journal


def item(number: int) -> FileItem:
    return FileItem(f"../{number}.jpg", f"{number}.jpg", f"/{number}.jpg", 10 + number, 77)


def note(out, count=5, settings=None, shard=(1, 1), stem="x"):
    with Journal(out, settings or {}, shard).held() as journal:
        for number in range(count):
            journal.add(item(number), item(number).stem if number else stem)


def known(out, settings=None, shard=(1, 1), fresh=False, count=9):
    with Journal(out, settings or {}, shard).held(fresh) as journal:
        return [number for number in range(count) if journal.has(item(number))]


def test_what_is_noted_is_known(tmp_path):
    note(tmp_path)
    with Journal(tmp_path, {}).held() as journal:
        assert len(journal) == 5 and all(journal.has(item(number)) for number in range(5))
        assert not journal.has(item(5))
        for change in (dict(bytes=1), dict(modified_ns=1), dict(key="../other.jpg")):
            assert not journal.has(replace(item(1), **change))
        assert journal.stem_of(item(0)) == "x" and journal.stem_of(item(1)) == ""


def test_lines_that_are_cut_or_damaged_are_dropped(tmp_path):
    note(tmp_path)
    file = tmp_path / ".sfp/journal-1-of-1.txt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert known(tmp_path) == [0, 1, 2, 3, 4]
    file.write_bytes(whole[:-9])
    assert known(tmp_path) == [0, 1, 2, 3]
    with Journal(tmp_path, {}).held() as journal:
        journal.add(item(7), "7")
    assert known(tmp_path) == [0, 1, 2, 3, 7]
    lines = whole.split(b"\n")
    for broken in (lines[2][:-1] + b"?", b"\xff\0\t", b"", lines[2][3:], lines[2] * 2):
        file.write_bytes(b"\n".join([*lines[:2], broken, *lines[3:]]))
        assert known(tmp_path) == [0, 2, 3, 4]


def test_other_settings_make_all_anew(tmp_path):
    note(tmp_path, settings={"names": ["a"]})
    assert known(tmp_path, {"names": ["a"]}) == [0, 1, 2, 3, 4]
    assert known(tmp_path, {"names": ["b"]}) == []
    assert known(tmp_path, {"names": ["a"]}) == []  # the results may be the others' by now


def test_fresh_forgets(tmp_path):
    note(tmp_path)
    assert known(tmp_path, fresh=True) == [] and known(tmp_path) == []


def test_shards_know_of_each_other(tmp_path):
    note(tmp_path, 3, shard=(1, 2))
    assert known(tmp_path, shard=(2, 2)) == known(tmp_path, shard=(1, 5)) == [0, 1, 2]


def test_nothing_is_left_where_nothing_is_done(tmp_path):
    with Journal(tmp_path / "out", {}).held():
        pass
    assert not (tmp_path / "out").exists()


HOLD = """import sys; from pathlib import Path; from sfp.many.journal import Journal
with Journal(Path(sys.argv[1]), {'n': 1}, (1, 2)).held(): print('held', flush=True); input()"""


def test_runs_that_are_at_work_at_the_same_time(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout.readline() == b"held\n"
        assert known(tmp_path, {"n": 1}, (2, 2)) == []  # its neighbour may
        for settings, shard, words in (
            ({"n": 1}, (1, 2), rf"process {process.pid} on .* is at work in .*; wait"),
            ({"n": 1}, (1, 3), rf"process {process.pid} .* as one of 2 shards; wait .*--out"),
            ({"n": 2}, (2, 2), rf"process {process.pid} .* with other settings; wait .*--out"),
        ):
            with pytest.raises(SFPError, match=words):
                known(tmp_path, settings, shard)
    finally:
        process.kill()
        process.communicate()
    journal = Journal(tmp_path, {"n": 2}, (1, 2))
    with journal.held():
        assert journal.was_killed
    note(tmp_path, settings={"n": 2}, shard=(1, 2))
    journal = Journal(tmp_path, {"n": 2}, (1, 2))
    with journal.held():
        assert not journal.was_killed


def test_a_full_disk(tmp_path):
    (tmp_path / "out").mkdir()
    words = r"journal-1-of-1.txt can't be written \(File too large\); put that right .*goes on"
    with files_limited(4 << 10), pytest.raises(SFPError, match=words):
        note(tmp_path / "out", 10_000)
    done = known(tmp_path / "out", count=100)
    assert 10 < len(done) == done[-1] + 1
    with files_limited(0), pytest.raises(SFPError, match="choose another folder with --out"):
        note(tmp_path / "other")
