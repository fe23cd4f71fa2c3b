"""Counts and figures against mmseg's metric and scikit-learn; the store after ``kill -9``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from sfp.errors import SFPError
from sfp.evaluation.counts import CountStore, Figures, count_image, sum_counts

CARD = dict(config="c", weights="w", dataset="d", code="k")


def maps(seed: int, classes: int = 7, ignore: int = 255) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and labels of which some are ignored.

    Class 5 is nowhere, class 6 only predicted.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (40, 50), generator=generator)
    prediction = torch.where(
        torch.rand(40, 50, generator=generator) < 0.6,
        labels,
        torch.randint(0, classes, (40, 50), generator=generator),
    )
    prediction[prediction == 5] = 6
    labels[torch.rand(40, 50, generator=generator) < 0.1] = ignore
    return prediction, labels


def test_figures_equal_mmsegs_metric():
    from mmseg.evaluation import IoUMetric

    pairs = [maps(seed) for seed in range(5)]
    total = sum_counts((count_image(*pair, classes=7) for pair in pairs), 7)
    figures = Figures.of(total)
    areas = [
        sum(parts)
        for parts in zip(
            *(IoUMetric.intersect_and_union(p, label, 7, 255) for p, label in pairs), strict=True
        )
    ]
    theirs = IoUMetric.total_area_to_metrics(*areas)
    np.testing.assert_allclose(figures.iou, 100 * theirs["IoU"], rtol=1e-6)
    np.testing.assert_allclose(figures.acc, 100 * theirs["Acc"], rtol=1e-6)
    assert figures.aAcc == pytest.approx(100 * float(theirs["aAcc"]), rel=1e-6)
    assert figures.mIoU == pytest.approx(100 * np.nanmean(theirs["IoU"]), rel=1e-6)
    assert np.isnan(figures.iou[5]) and figures.iou[6] == 0 and np.isnan(figures.acc[6])


def test_figures_equal_scikit_learns_confusion_matrix():
    prediction, labels = maps(3)
    kept = labels != 255
    matrix = confusion_matrix(labels[kept], prediction[kept], labels=range(7))
    counts = count_image(prediction, labels, 7)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, [np.diag(matrix), matrix.sum(0), matrix.sum(1)])
    present = [
        matrix[k, k] / (matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]) for k in range(5)
    ]
    assert Figures.of(counts).mIoU_present == pytest.approx(100 * np.mean(present))
    assert Figures.of(counts).mIoU == pytest.approx(
        100 * np.mean([*present, 0.0])
    )  # class 6 was predicted in vain


def test_sixteen_bit_labels():
    labels = torch.tensor([[255, 846, 65535, 0]])
    counts = count_image(torch.tensor([[255, 0, 3, 0]]), labels, 847, ignore=65535)
    assert counts.sum(1).tolist() == [2, 3, 3] and counts[0, 255] == 1


@pytest.mark.parametrize(
    ("prediction", "labels", "words"),
    [
        ([[0, 1]], [[0, 200]], "x.png has the label 200, but there are 3 classes"),
        ([[0, 1]], [[0, -1]], "label -1"),
        ([[0, 3]], [[0, 1]], "predicted class 3"),
        ([[0, 1, 2]], [[0, 1]], r"\(1, 2\), but its prediction \(1, 3\)"),
    ],
)
def test_what_is_out_of_range_is_an_error(prediction, labels, words):
    with pytest.raises(SFPError, match=words):
        count_image(torch.tensor(prediction), torch.tensor(labels), 3, name="x.png")


def test_nothing_labelled():
    counts = count_image(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255), 3)
    with pytest.raises(SFPError, match="No pixel is evaluated"):
        Figures.of(counts)


class TestStore:
    def filled(self, folder, names=("a", "b"), rank=0) -> dict[str, np.ndarray]:
        store = CountStore(folder, CARD, rank)
        found = {}
        for i, name in enumerate(names):
            found[name] = count_image(*maps(i), classes=7)
            store.add(name, found[name])
        return found  # never closed, as when killed

    def test_what_was_added_is_read_back_from_all_ranks(self, tmp_path):
        expected = {
            **self.filled(tmp_path / "counts"),
            **self.filled(tmp_path / "counts", ("c",), rank=3),
        }
        found = CountStore(tmp_path / "counts", CARD).read(7)
        assert set(found) == {"a", "b", "c"}
        for name, counts in expected.items():
            np.testing.assert_array_equal(found[name], counts)

    def test_a_line_cut_anywhere_is_dropped_and_the_next_run_goes_on(self, tmp_path):
        self.filled(tmp_path / "counts")
        file = tmp_path / "counts/rank0.jsonl"
        whole = file.read_bytes()
        first = whole.index(b"\n") + 1
        for end in (first + 1, first + 8, len(whole) - 2, len(whole) - 1):
            file.write_bytes(whole[:end])
            whole_line = end == len(whole) - 1  # but for its end
            assert set(CountStore(tmp_path / "counts", CARD).read(7)) == (
                {"a", "b"} if whole_line else {"a"}
            )
            self.filled(tmp_path / "counts", ("b", "c"))
            assert set(CountStore(tmp_path / "counts", CARD).read(7)) == {"a", "b", "c"}

    def test_another_run_is_refused_by_what_differs(self, tmp_path):
        self.filled(tmp_path / "work/counts")
        with pytest.raises(
            SFPError, match="work had another config and dataset; start it afresh with --fresh"
        ):
            CountStore(tmp_path / "work/counts", {**CARD, "config": "x", "dataset": "y"}).read(7)

    def test_clear(self, tmp_path):
        self.filled(tmp_path / "counts")
        CountStore(tmp_path / "counts", CARD).clear()
        assert (
            not (tmp_path / "counts").exists()
            and CountStore(tmp_path / "counts", CARD).read(7) == {}
        )

    def test_damage_of_any_kind_loses_lines_and_never_changes_a_figure(self, tmp_path):
        """120 damaged files.

        Bytes changed, cut out, doubled, put in; lines doubled, swapped, cut.
        """
        expected = self.filled(tmp_path / "counts", "abcd")
        file, random = tmp_path / "counts/rank0.jsonl", np.random.default_rng(0)
        whole, lost = file.read_bytes(), 0
        lines = whole.splitlines(keepends=True)
        for case in range(120):
            at, length = int(random.integers(len(whole))), int(random.integers(1, 40))
            noise = random.bytes(length)
            some = [lines[i] for i in random.integers(len(lines), size=6)]
            damaged = [
                whole[:at] + bytes([whole[at] ^ (1 << case % 8)]) + whole[at + 1 :],
                whole[:at] + noise + whole[at + length :],
                whole[:at] + noise + whole[at:],
                whole[:at] + whole[at + length :],
                whole[:at] + whole[max(0, at - length) :],
                b"".join(some) + some[0][: length + 8],
            ][case % 6]
            file.write_bytes(damaged)
            found = CountStore(tmp_path / "counts", CARD).read(7)
            lost += len(expected) - len(found)
            for name, counts in found.items():
                np.testing.assert_array_equal(counts, expected[name])
        assert 80 < lost < 360  # a line or so each time, not all of them

    @pytest.mark.parametrize(
        "line",
        [
            '["a",[[1,2,3,4]]]',
            '["a",[[99,2,3,4]]]',
            '["a",[["x",2,3,4]]]',
            '["a",{}]',
            "[]",
            "null",
            '"a"',
            '{"a":1}',
            '["a",[[1,2]]]',
            "[" * 9999,
        ],
    )
    def test_a_line_that_nobody_wrote_here_is_dropped(self, line, tmp_path):
        expected = self.filled(tmp_path / "counts", "b")
        with (tmp_path / "counts/rank0.jsonl").open("a") as file:
            file.write(line + "\n")
        assert set(CountStore(tmp_path / "counts", CARD).read(7)) == set(expected)

    def test_lines_of_another_run_are_dropped(self, tmp_path):
        self.filled(tmp_path / "other", "b")
        store = CountStore(tmp_path / "counts", {**CARD, "names": "n"})
        (tmp_path / "counts").mkdir()
        (tmp_path / "other/rank0.jsonl").rename(tmp_path / "counts/rank0.jsonl")
        assert store.read(7) == {}

    @pytest.mark.parametrize(
        "card", ["", "{", "[1]", "null", "\ufeff{}", "[" * 9999, '{"config": ']
    )
    def test_a_damaged_card_is_written_anew(self, card, tmp_path):
        """The lines prove by themselves whose they are."""
        self.filled(tmp_path / "counts", "a")
        (tmp_path / "counts/run.json").write_text(card)
        assert set(CountStore(tmp_path / "counts", CARD).read(7)) == {"a"}
        self.filled(tmp_path / "counts", "b")
        assert set(CountStore(tmp_path / "counts", CARD).read(7)) == {"a", "b"}
        assert json.loads((tmp_path / "counts/run.json").read_text()) == CARD

    def test_what_cannot_be_read(self, tmp_path):
        (tmp_path / "work/counts/rank0.jsonl").mkdir(parents=True)
        with pytest.raises(SFPError, match=r"The interrupted run in .*work can't be read"):
            CountStore(tmp_path / "work/counts", CARD).read(7)

    def test_lines_are_a_checksum_and_json(self, tmp_path):
        self.filled(tmp_path / "counts", ("a",))
        name, columns = json.loads((tmp_path / "counts/rank0.jsonl").read_text().partition(" ")[2])
        assert (
            name == "a"
            and all(len(column) == 4 for column in columns)
            and 5 not in [column[0] for column in columns]
        )
