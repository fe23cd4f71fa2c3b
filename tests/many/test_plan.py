"""Which pictures are left, and where their results go."""

from __future__ import annotations

import pytest
from many_photos import jpeg

from sfp.many.journal import Journal
from sfp.many.plan import Plan
from sfp.many.sources import Sources

ENDINGS = ["_labels.png", "_overlay.jpg"]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "a.png", "a.webp", "in/a.jpg", "in/b.jpg"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(jpeg())
    return tmp_path


@pytest.fixture
def plan(folder):
    """Stems of what is left; what is listed is then noted as done."""

    def make(*given, do=True, read_record=lambda file: None, shard=(1, 1), fresh=False):
        sources = Sources([str(folder / each) for each in given or ["p"]], folder / "out")
        with Journal(folder / "out", {}, shard).held() as journal:
            own = Plan(sources, folder / "out", journal, ENDINGS, read_record, shard, fresh)
            units = list(own)
            for job in (job for unit in units for job in unit if do):
                for ending in ENDINGS:
                    file = folder / f"out/{job.stem}{ending}"
                    file.parent.mkdir(exist_ok=True, parents=True)
                    file.touch()
                journal.add(job.item, job.stem)
        left = [job.stem for unit in units for job in unit]
        assert own.seen == len(left) + own.done
        return left

    return make


def test_stems_of_one_name(plan):
    assert plan() == ["a", "a_png", "a_webp", "in/a", "in/b"]
    assert plan() == []
    assert plan(fresh=True) == ["a", "a_png", "a_webp", "in/a", "in/b"]


def test_a_picture_that_comes_twice_is_done_once(plan):
    assert plan("p/in/a.jpg", "p", "p/a.png", "p/*.jpg") == [
        "a",
        "a_jpg",
        "a_png",
        "a_webp",
        "in/b",
    ]


def test_changed_pictures_and_deleted_results_are_done_again_in_their_place(plan, folder):
    plan("p/a.png", "p")
    (folder / "p/a.png").write_bytes(jpeg(3, (50, 50)))
    (folder / "out/in/b_overlay.jpg").unlink()
    own = {"a": "../p/a.png"}

    def read_record(file):
        return {"source": {"path": own.get(file.name.removesuffix(ENDINGS[0]))}}

    assert plan("p", read_record=read_record) == ["a", "in/b"]


def test_files_of_unknown_origin_are_not_overwritten(plan, folder):
    (folder / "out").mkdir()
    for name in ("a_labels.png", "a_png_labels.png"):
        (folder / "out" / name).write_text("mine")
    assert plan("p/a.png") == ["a_png-2"]
    assert plan("p/a.png") == []


def test_shards_share_out_all(plan, folder):
    (folder / "p/many").mkdir()
    for number in range(100):
        (folder / f"p/many/{number}.jpg").write_bytes(b"")
    shares = [plan(shard=(number, 3)) for number in (1, 2, 3)]
    assert sorted(stem for share in shares for stem in share) == sorted(
        ["a", "a_png", "a_webp", "in/a", "in/b", *(f"many/{number}" for number in range(100))]
    )
    assert min(map(len, shares)) > 20
    assert plan() == []  # with another number of shards, too


def test_units_are_the_same_after_an_interruption(folder):
    (folder / "m").mkdir()
    (folder / "out").mkdir()
    for number in range(40):
        (folder / f"m/{number:02d}.jpg").write_bytes(b"")
    with Journal(folder / "out", {}).held() as journal:

        def units():
            sources = Sources([str(folder / "m")])
            return list(Plan(sources, folder / "out", journal, ["_labels.png"], lambda file: None))

        whole = units()
        assert [len(unit) for unit in whole] == [16, 16, 8]
        for job in whole[0][:5]:
            (folder / f"out/{job.stem}_labels.png").touch()
            journal.add(job.item, job.stem)
        assert units() == [whole[0][5:], *whole[1:]]


def test_wrong_sources_are_told_by_one_shard(folder):
    told = []
    for number in (1, 2, 3):
        with Journal(folder / "out", {}, (number, 3)).held() as journal:
            plan = Plan(
                Sources([str(folder / "none.jpg")]),
                folder / "out",
                journal,
                ENDINGS,
                None,
                (number, 3),
            )
            assert not list(plan)
            told += plan.wrong
    assert len(told) == 1
