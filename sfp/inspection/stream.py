"""One run of a picture through CLIP's layers, and what is read of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sfp.errors import SFPError, unknown_choice
from sfp.options import check_type


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """One run of an image through CLIP's L layers, patches on a grid (h, w), N = h w, row-major.

    All of its maps come from two arrays, the tokens and the attention. Layers count from 1.

    Attributes:
        grid: (h, w).
        tokens: what each layer returns, after any repair, the P tokens before the patches first:
            (L, P + N, C) float32. P is 1, the class token, in most models.
        attention: each layer's weights, averaged over heads, row i those of token i:
            (L, P + N, P + N) float32.
        outliers: by each detector's name the tokens that it flags, (L, h, w) bool, given the
            layer's attention and its output before any repair.
        outlier_scores: the scores behind them, (L, h, w) float32.
        repaired: the tokens that were repaired, (L, h, w) bool; none without purification.
        class_token: whether the first token is a class token.
        heads: by the layers that were asked for each head's attention, whose mean over the H heads
            is ``attention``: (H, P + N, P + N) float32.
        mlp: by the layers that were asked for the MLP's M hidden units of each token after their
            activation, as they enter its second map: (P + N, M) float32.
    """

    grid: tuple[int, int]
    tokens: np.ndarray
    attention: np.ndarray
    outliers: dict[str, np.ndarray]
    outlier_scores: dict[str, np.ndarray]
    repaired: np.ndarray
    class_token: bool = True
    heads: dict[int, np.ndarray] = field(default_factory=dict)
    mlp: dict[int, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.grid
        repaired = int(self.repaired.sum())
        return f"Stream({self.layers} layers, {height}x{width} patches, {repaired} repaired)"

    @property
    def prefix(self) -> int:
        """P, how many tokens come before the patches."""
        return self.tokens.shape[1] - self.grid[0] * self.grid[1]

    @property
    def layers(self) -> int:
        """L."""
        return len(self.tokens)

    @property
    def cls_attention(self) -> np.ndarray:
        """The class token's attention to each patch, (L, h, w) float32.

        Raises:
            SFPError: this model has no class token.
        """
        if not self.class_token:
            raise SFPError(
                "This model has no class token, so there is no cls_attention; take"
                " received_attention or attention_of."
            )
        return self._maps(self.attention[:, 0, self.prefix :])

    @property
    def self_attention(self) -> np.ndarray:
        """Each patch's attention to itself, (L, h, w) float32."""
        return self._maps(np.diagonal(self.attention, axis1=1, axis2=2)[:, self.prefix :])

    @property
    def received_attention(self) -> np.ndarray:
        """The mean attention that each patch receives from all patches, (L, h, w) float32."""
        return self._maps(self.attention[:, self.prefix :, self.prefix :].mean(1))

    @property
    def norms(self) -> np.ndarray:
        """Length of each patch token, (L, h, w) float32."""
        return self._maps(np.linalg.norm(self.tokens[:, self.prefix :], axis=-1))

    def attention_of(self, layer: int, patch: tuple[int, int]) -> np.ndarray:
        """Attention of the patch at (row, column) to the patches in a layer: (h, w) float32.

        With its attention to the class token, where there is one, they sum to 1.

        Raises:
            SFPError: no such layer or patch.
        """
        row = self.prefix + self._patch(patch)
        return self.attention[self._layer(layer), row, self.prefix :].reshape(self.grid)

    def attention_by_head(self, layer: int, patch: tuple[int, int] | None = None) -> np.ndarray:
        """What each head of a layer attends to from the patch at (row, column): (H, h, w) float32.

        Without a patch from the class token, or, where there is none, what all patches give, on
        average.

        Raises:
            SFPError: no such layer or patch, or the layer's heads were not asked for.
        """
        maps = self._asked(self.heads, layer, "heads")
        if patch is not None:
            rows = maps[:, self.prefix + self._patch(patch)]
        else:
            rows = maps[:, 0] if self.class_token else maps[:, self.prefix :].mean(1)
        return self._maps(rows[:, self.prefix :])

    def activations(self, layer: int, units: Sequence[int]) -> np.ndarray:
        """The activations of some of the MLP's units at the patches: (units, h, w) float32.

        Units count from 0, as the rows of the MLP's first map do.

        Raises:
            SFPError: no such layer or unit, or the layer's MLP was not asked for.
        """
        found = self._asked(self.mlp, layer, "mlp")
        check_type("units", units, Sequence[int], [233])
        for unit in units:
            if unit not in range(found.shape[1]):
                raise SFPError(
                    f"There is no unit {unit} in layer {layer}; its units go from 0 to"
                    f" {found.shape[1] - 1}."
                )
        return self._maps(found[self.prefix :, list(units)].T)

    def strongest_units(self, layer: int, detector: str, count: int = 6) -> list[int]:
        """The MLP's units with the largest mean activation at the tokens that a detector flags, at
        all patches where it flags none; the largest first.

        Raises:
            SFPError: no such layer or detector, or the layer's MLP was not asked for.
        """
        found = self._asked(self.mlp, layer, "mlp")[self.prefix :]
        if detector not in self.outliers:
            raise unknown_choice("detector of this inspection", detector, self.outliers)
        flagged = self.outliers[detector][layer - 1].ravel()
        means = (found[flagged] if flagged.any() else found).mean(0)
        return np.argsort(-means, kind="stable")[:count].tolist()

    def similarity(self, layer: int, patch: tuple[int, int]) -> np.ndarray:
        """Cosine of the patch at (row, column) with each patch after a layer: (h, w) float32.

        Raises:
            SFPError: no such layer or patch.
        """
        rows = _normalised(self._patches(layer))
        return (rows @ rows[self._patch(patch)]).reshape(self.grid)

    def pca(self, layer: int) -> np.ndarray:
        """First three principal components of the patch tokens after a layer as colours.

        (h, w, 3) in [0, 1]; tokens are normalised first.

        Raises:
            SFPError: no such layer.
        """
        return principal_colours(self._patches(layer)).reshape(*self.grid, 3)

    def _asked(self, kept: dict[int, np.ndarray], layer: int, option: str) -> np.ndarray:
        self.require_layer(layer)
        if layer not in kept:
            raise SFPError(
                f"The {option} of layer {layer} were not asked for; inspect with"
                f" {option}={sorted([*kept, layer])}."
            )
        return kept[layer]

    def _patches(self, layer: int) -> np.ndarray:
        """The patch tokens after a layer, (N, C)."""
        return self.tokens[self._layer(layer), self.prefix :]

    def _maps(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, *self.grid)

    def require_layer(self, layer: int) -> None:
        """Raises SFPError where there is no such layer."""
        check_type("layer", layer, int)
        if layer not in range(1, self.layers + 1):
            raise SFPError(
                f"There is no layer {layer}; this model's layers go from 1 to {self.layers}."
            )

    def _layer(self, layer: int) -> int:
        self.require_layer(layer)
        return layer - 1

    def _patch(self, patch: tuple[int, int]) -> int:
        check_type("patch", patch, Sequence[int], (0, 0))
        row, column = patch if len(patch) == 2 else (-1, -1)
        height, width = self.grid
        if not (0 <= row < height and 0 <= column < width):
            raise SFPError(
                f"There is no patch at row {row}, column {column}; give a row from 0 to"
                f" {height - 1} and a column from 0 to {width - 1}."
            )
        return int(row) * width + int(column)


def principal_colours(tokens: np.ndarray) -> np.ndarray:
    """First three principal components of normalised tokens (N, C) as colours (N, 3) in [0, 1].

    Each is stretched over its middle 96 percent.
    """
    rows = _normalised(tokens.astype(np.float64))
    parts = np.zeros((len(rows), 3))
    count = min(3, *rows.shape)
    if len(rows) > 1:
        from sklearn.decomposition import PCA  # takes a second to import

        parts[:, :count] = PCA(count, svd_solver="full").fit_transform(rows)
    least, most = np.percentile(parts, [2, 98], axis=0)
    return np.clip((parts - least) / np.maximum(most - least, 1e-12), 0, 1)


def _normalised(rows: np.ndarray) -> np.ndarray:
    """Rows of length one; a zero row stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
