"""Detectors on hand-made layers."""

from __future__ import annotations

import pytest
import torch

from sfp.clip.trunk import LayerState
from sfp.errors import SFPError
from sfp.outliers import build_detector, list_detectors


def state(patches: torch.Tensor, grid=None, **attention) -> LayerState:
    """A layer with patch tokens (B, N, C)."""
    tokens = torch.cat([patches.new_zeros(len(patches), 1, patches.shape[2]), patches], 1)
    return LayerState(1, grid or (1, patches.shape[1]), tokens, tokens, **attention)


def attended(cls: list[float], own: list[float]) -> LayerState:
    row, diagonal = torch.tensor([[cls]]), torch.tensor([[own]])
    return state(
        torch.zeros(1, len(cls), 2), cls_row=row, cls_column=row.flip(-1), diagonal=diagonal
    )


class TestSOM:
    layer = attended([0.10, 0.30, 0.20, 0.05, 0.20], [0.20, 0.25, 0.20, 0.01, 0.15])

    def test_strictly_below_the_class_attention(self):
        mask, scores = build_detector("SOM")(self.layer)
        assert mask.tolist() == [[False, True, False, True, True]]
        torch.testing.assert_close(scores[0], torch.tensor([-0.10, 0.05, 0.0, 0.04, 0.05]))

    def test_the_factor_of_the_released_code(self):
        mask, _ = build_detector("SOM", cls_factor=1.5)(self.layer)
        assert mask.tolist() == [[False, True, True, True, True]]

    def test_the_cap_keeps_the_largest_class_attentions_not_margins(self):
        mask, _ = build_detector("SOM", max_outliers=2)(attended([0.3, 0.9, 0.5], [0.1, 0.89, 0.6]))
        assert mask.tolist() == [[True, True, False]]
        mask, _ = build_detector("SOM", max_outliers=1)(attended([0.3, 0.9, 0.5], [0.1, 0.89, 0.6]))
        assert mask.tolist() == [[False, True, False]]
        assert not build_detector("SOM", max_outliers=0)(self.layer)[0].any()

    def test_heads_are_averaged_or_their_largest_compared(self):
        layer = state(
            torch.zeros(1, 1, 2),
            cls_row=torch.tensor([[[0.9], [0.1]]]),
            cls_column=None,
            diagonal=torch.tensor([[[0.6], [0.6]]]),
        )
        assert build_detector("SOM")(layer)[0].tolist() == [[False]]
        assert build_detector("SOM", heads="max")(layer)[0].tolist() == [[True]]

    def test_the_column_instead_of_the_row(self):
        mask, _ = build_detector("SOM", direction="column")(self.layer)
        assert mask.tolist() == [[False, False, False, True, False]]


class TestL2:
    layer = state(torch.tensor([[[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [2.0, 0.0]]]))

    def test_scores_are_norms(self):
        torch.testing.assert_close(
            build_detector("L2")(self.layer)[1], torch.tensor([[5.0, 1.0, 10.0, 2.0]])
        )

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (dict(topk=1), [False, False, True, False]),
            (dict(topk=2), [True, False, True, False]),
            (dict(topk=0), [False] * 4),
            (dict(topk=99), [True] * 4),
            (dict(ratio=0.5), [True, False, True, False]),
            (dict(ratio=0.01), [False, False, True, False]),
            (dict(threshold=4.9), [True, False, True, False]),
        ],
    )
    def test_rules(self, options, expected):
        assert build_detector("L2", **options)(self.layer)[0].tolist() == [expected]


class TestLOF:
    @pytest.mark.parametrize(("tokens", "flagged"), [(49, 3), (196, 10), (256, 13), (576, 29)])
    def test_flag_counts(self, tokens, flagged):
        mask, _ = build_detector("LOF")(state(torch.randn(2, tokens, 16)))
        assert mask.sum(1).tolist() == [flagged, flagged]

    def test_equals_the_closed_form(self):
        points = torch.randn(60, 5, dtype=torch.float64)
        squared = ((points[:, None] - points[None]) ** 2).sum(-1)
        order = squared.argsort(1)
        k_distance = squared.gather(1, order)[:, 30]
        expected = torch.stack(
            [k_distance[i] * (1 / k_distance[order[i, 1:31]]).mean() for i in range(60)]
        )
        _, scores = build_detector("LOF")(state(points.float()[None]))
        torch.testing.assert_close(scores[0], expected.float(), atol=1e-4, rtol=1e-4)

    def test_a_planted_point_is_found_and_permutation_moves_it(self):
        points = torch.randn(1, 100, 8)
        points[0, 17] += 30
        mask, scores = build_detector("LOF", contamination=0.01)(state(points))
        assert mask[0].nonzero().tolist() == [[17]]
        order = torch.randperm(100)
        torch.testing.assert_close(
            build_detector("LOF")(state(points[:, order]))[1], scores[:, order]
        )

    @pytest.mark.parametrize("tokens", [1, 2, 5, 30])
    def test_small_windows(self, tokens):
        mask, scores = build_detector("LOF")(state(torch.randn(2, tokens, 4)))
        assert torch.isfinite(scores).all() and mask.shape == (2, tokens)

    def test_equal_tokens_are_no_outliers(self):
        mask, scores = build_detector("LOF")(state(torch.ones(1, 50, 4)))
        assert torch.isfinite(scores).all() and not mask.any()


@pytest.mark.parametrize("name", list_detectors())
def test_masks_are_per_image(name):
    """A second image in the batch changes nothing for the first."""
    attention = torch.rand(2, 3, 65, 65).softmax(-1)
    parts = dict(
        cls_row=attention[:, :, 0, 1:], cls_column=attention[:, :, 1:, 0],
        diagonal=attention.diagonal(dim1=2, dim2=3)[..., 1:],
        attention=attention.mean(1),
    )  # fmt: skip
    patches = torch.randn(2, 64, 8)
    detector = build_detector(name)
    both, _ = detector(state(patches, (8, 8), **parts))
    for i in range(2):
        one, _ = detector(
            state(
                patches[i : i + 1],
                (8, 8),
                **{key: value[i : i + 1] for key, value in parts.items()},
            )
        )
        assert both.dtype == torch.bool and torch.equal(one[0], both[i])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SON", {}, "did you mean 'SOM'"),
        ("SOM", dict(cap=3), "option of detector SOM"),
        ("SOM", dict(heads="median"), "'median'"),
        ("SOM", dict(max_outliers=-1), "at least 0"),
        ("L2", dict(ratio=0.1, threshold=3.0), "one of them"),
        ("L2", dict(ratio=1.5), "from 0 to 1"),
        ("LOF", dict(k=0), "at least 1"),
    ],
)
def test_wrong_options(name, options, words):
    with pytest.raises(SFPError, match=words):
        build_detector(name, **options)


class TestDBSCAN:
    """Ours: noise by cosine distance."""

    @staticmethod
    def two_bundles(strays: int = 2) -> torch.Tensor:
        """Tokens around two directions, then strays with directions of their own.

        (1, 40 + strays, 8).
        """
        generator = torch.Generator().manual_seed(0)
        bundles = torch.eye(8)[[0] * 20 + [1] * 20] + 0.02 * torch.randn(40, 8, generator=generator)
        return torch.cat([bundles, torch.eye(8)[4 : 4 + strays] * 30])[None]

    def test_noise_is_an_outlier_whatever_its_norm(self):
        mask, scores = build_detector("DBSCAN", eps=0.1)(state(self.two_bundles()))
        assert (
            mask[0].nonzero()[:, 0].tolist()
            == [40, 41]
            == scores[0].topk(2).indices.sort().values.tolist()
        )

    @pytest.mark.parametrize("rule", ["quantile", "elbow"])
    def test_eps_from_the_image(self, rule):
        mask, _ = build_detector("DBSCAN", eps_rule=rule)(state(self.two_bundles()))
        assert mask[0, 40:].all() and mask.sum() <= 6

    def test_small_clusters_count_on_request(self):
        tokens = torch.cat([self.two_bundles(0), torch.eye(8)[[6] * 6][None]], 1)
        assert not build_detector("DBSCAN", eps=0.1)(state(tokens))[0].any()
        assert build_detector("DBSCAN", eps=0.1, min_size=7)(state(tokens))[0][0].nonzero()[
            :, 0
        ].tolist() == list(range(40, 46))

    def test_no_cluster_no_outlier(self):
        assert not build_detector("DBSCAN", eps=1e-3)(state(torch.eye(30)[None]))[0].any()

    def test_equals_scikit_learn(self):
        from sklearn.cluster import DBSCAN

        patches = torch.randn(2, 64, 4)
        mask, _ = build_detector("DBSCAN", eps=0.1, min_samples=4)(state(patches))
        for own, points in zip(mask, patches, strict=True):
            expected = (
                DBSCAN(eps=0.1, min_samples=4, metric="cosine").fit_predict(points.numpy()) < 0
            )
            assert torch.equal(own, torch.from_numpy(expected)) and own.any() and not own.all()


class TestHDBSCAN:
    def test_strays_are_outliers(self):
        mask, scores = build_detector("HDBSCAN")(state(TestDBSCAN.two_bundles()))
        assert mask[0, 40:].all() and (scores[0, 40:] == 1).all() and mask.float().mean() < 0.5

    @pytest.mark.parametrize("tokens", [1, 4, 6])
    def test_few_tokens(self, tokens):
        mask, _ = build_detector("HDBSCAN")(state(torch.randn(2, tokens, 4)))
        assert mask.shape == (2, tokens)


class TestAttentionColumn:
    attention = torch.tensor(
        [[[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.1, 0.4], [0.0, 0.1, 0.2, 0.7], [0.0, 0.2, 0.2, 0.6]]]
    )
    layer = state(torch.zeros(1, 3, 2), attention=attention)

    def test_scores_are_column_means_over_patches(self):
        mask, scores = build_detector("AttentionColumn", topk=1)(self.layer)
        torch.testing.assert_close(scores, torch.tensor([[0.8 / 3, 0.5 / 3, 1.7 / 3]]))
        assert mask.tolist() == [[False, False, True]]

    def test_with_the_class_row_and_without_the_diagonal(self):
        scores = build_detector("AttentionColumn", cls_row=True)(self.layer)[1]
        torch.testing.assert_close(scores, torch.tensor([[1.0 / 4, 0.8 / 4, 2.1 / 4]]))
        scores = build_detector("AttentionColumn", own=False)(self.layer)[1]
        torch.testing.assert_close(scores, torch.tensor([[0.3 / 2, 0.3 / 2, 1.1 / 2]]))

    def test_z_score(self):
        assert build_detector("AttentionColumn", z=1.0)(self.layer)[0].tolist() == [
            [False, False, True]
        ]
        flat = state(torch.zeros(1, 3, 2), attention=torch.full((1, 4, 4), 0.25))
        assert not build_detector("AttentionColumn", z=0.0)(flat)[0].any()


class TestIsolationForest:
    def test_a_planted_point_is_found_the_same_twice(self):
        points = torch.randn(1, 100, 8)
        points[0, 17] += 30
        detector = build_detector("IsolationForest", contamination=0.01, trees=30)
        mask, scores = detector(state(points))
        assert mask[0].nonzero().tolist() == [[17]] and torch.equal(
            detector(state(points))[1], scores
        )

    @pytest.mark.parametrize(("tokens", "flagged"), [(49, 3), (196, 10)])
    def test_flag_counts(self, tokens, flagged):
        mask, _ = build_detector("IsolationForest", trees=20)(state(torch.randn(1, tokens, 16)))
        assert mask.sum() == flagged


@pytest.mark.parametrize(
    "name", [name for name in list_detectors() if name not in ("L2", "AttentionColumn")]
)
def test_equal_tokens_hold_no_outlier(name):
    """Of a constant window nothing stands out.

    L2 and AttentionColumn take a fixed number by definition.
    """
    even = torch.full((1, 1, 50), 0.02)
    parts = dict(cls_row=even, cls_column=even, diagonal=even)
    mask, scores = build_detector(name)(state(torch.ones(1, 50, 4), **parts))
    assert not mask.any() and torch.isfinite(scores).all()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("DBSCAN", dict(eps=0.0), "above 0"),
        ("DBSCAN", dict(eps_rule="knee"), "'knee'"),
        ("DBSCAN", dict(min_samples=0), "at least 1"),
        ("HDBSCAN", dict(min_cluster_size=1), "at least 2"),
        ("AttentionColumn", dict(topk=-1), "at least 0"),
        ("IsolationForest", dict(trees=0), "at least 1"),
        ("IsolationForest", dict(contamination=2.0), "from 0 to 1"),
    ],
)
def test_wrong_options_of_the_others(name, options, words):
    with pytest.raises(SFPError, match=words):
        build_detector(name, **options)
