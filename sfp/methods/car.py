"""CaR, CLIP as RNN: texts are proposed, scored and dropped until none is dropped any more.

Sun et al., CVPR 2024; google-research/google-research, clip_as_rnn.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfp.backbones.second_clip import SecondCLIP
from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.text_bank import TextBank
from sfp.clip.trunk import Attention, Hook, ImageTrunk, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes, Method
from sfp.methods._boxes import mask_of
from sfp.methods._parts import attention_map, propagation
from sfp.methods._visual_prompts import VisualPrompt, prompted
from sfp.options import Positive, Share
from sfp.stages import Picture, Text, View

_BACKGROUND = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea",
    "railway", "railroad", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock",
    "street", "valley", "bridge",
)  # fmt: skip
_SIZES = ("small", "medium", "large")
_CLEAN = "a clean origami {}."
SENTENCES = (
    _CLEAN,
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(f"a photo of a {size} {{}}." for size in _SIZES),
    *(f"This is a photo of a {size} {{}}." for size in _SIZES),
    *(f"There is a {size} {{}} in the scene." for size in _SIZES),
)
_MAPS = 8  # blocks whose attention makes the affinity
_AT_ONCE = 8  # texts whose gradients are made at once


@dataclass(frozen=True)
class Looked:
    """What is known of a picture before any text.

    Attributes:
        pixels: (H, W, 3) uint8.
        tokens: X^{L-1}, (1, T, C).
        affinity: T T of the patches, (N, N).
        grid: (h, w).
        rows: the patches' among the tokens.
    """

    pixels: np.ndarray
    tokens: Tensor
    affinity: Tensor
    grid: tuple[int, int]
    rows: slice


@dataclass(frozen=True)
class Sentences:
    """Unit vectors of a vocabulary's words.

    Attributes:
        bare: of the words alone, (Q, D).
        clean: of "a clean origami X.", (Q, D).
        scored: of each of ``SENTENCES``, by the scorer, (Q, 15, D').
        background: of the background words, (W, D).
    """

    bare: Tensor
    clean: Tensor
    scored: Tensor
    background: Tensor


@METHODS.register("CaR")
class CaR(Method):
    """Maps M_k in [0, 1] of the texts that stay, 0 of those that were dropped; whole images only.

    One round: with z = softmax(exp(logit scale) <v, t>) over texts and background words, v the mean
    patch's vector, a = LN1_L(X^{L-1}) and alpha the mean over patches of dz_k/da, the map of text k
    is max(0, sum_c alpha_c a_c), spread from the boxes of what stands out in it along T T, T the
    balanced mean attention of the last 8 blocks. Each map makes a picture that points at it; the
    scorer compares it with all texts in 15 sentences, and texts above ``confidence_threshold`` go
    to the next round (the best one where none is). It ends when a round drops none.

    A pixel gets the text of its largest map, or the background where (1 - max_k M_k)^bg_factor is
    larger: no softmax, no threshold. The authors' dense CRF in between is left out: it is in no
    library that is kept up; ``refine=["PAMR"]`` may stand for it. SAM's masks are left out, too.

    ``__call__`` gives plain CLIP's patch features, which the scores don't come from.

    Args:
        scorer: the CLIP that compares pointing pictures with texts, a name of ``load_clip``; the
            method's own if None. The authors' is ViT-L-14.
        scorer_weights: its weights, a tag or a path.
        scorer_block: after which of the scorer's blocks its class token is read; the authors' code
            leaves the last one out.
        picture: "resized" to the protocol's short side; or of the "file", at its own size, as the
            authors have it.
        background_words: what no text should be; their vectors stand beside the texts' in z.
        background_class: whether class 0 is a background; where its first word is "background", if
            None.
        stuff: words that are stuff: they go through rounds of their own, with the other words as
            background words, and things are painted over them.
        clipes_threshold: share of a map's maximum above which its boxes lie.
        mask_threshold: what a map is above inside the region that a picture points at.
        confidence_threshold: least score of a text that stays.
        visual_prompts: how a picture points: "blur", "gray", "black" outside of the region,
            "circle", "rectangle", "contour" around it.
        stuff_prompts: the same for stuff; as for things if None.
        bg_factor: exponent of the background's map; larger ones leave less of it.
    """

    scorer: str | None = None
    scorer_weights: str = "openai"
    scorer_block: Literal["L-1", "L"] = "L-1"
    picture: Literal["resized", "file"] = "resized"
    background_words: tuple[str, ...] = _BACKGROUND
    background_class: bool | None = None
    stuff: tuple[str, ...] = ()
    clipes_threshold: Share = 0.4
    mask_threshold: Share = 0.4
    confidence_threshold: Share = 0.6
    visual_prompts: tuple[VisualPrompt, ...] = ("circle", "blur")
    stuff_prompts: tuple[VisualPrompt, ...] | None = None
    bg_factor: Positive = 1.0

    changes = Changes("Sun et al., CVPR 2024", "q-k; maps by gradients, texts dropped")
    joins_windows = True
    whole_images = True
    published = dict(positional_resize="bilinear-half")

    def prepare(self) -> None:
        self._asked: dict[tuple, Sentences] = {}  # of the vocabulary asked for last
        self._copy: ImageTrunk | None = None
        if self.scorer is not None:
            second = SecondCLIP.load(self.scorer, self.scorer_weights, self.clip)
            self.backbones["scorer"] = second

    @property
    def _judge(self) -> FrozenCLIP:
        return self.backbones["scorer"].clip if self.backbones else self.clip

    def tokens(self, windows: Tensor) -> Tensor:
        return self.stream(windows, last=self.trunk.layers)[:, self.patch_rows(windows)]

    # ------------------------------------------------------------------ picture
    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Nothing: ``look`` takes the whole picture."""
        return {}

    def look(self, picture: Picture) -> Looked:
        """The picture, resized bicubic up to multiples of a patch, through blocks 1 to L-1."""
        pixels = picture.original() if self.picture == "file" else self.clip.pixels(picture.image)
        patch = self.trunk.patch
        height, width = (-side % patch + side for side in pixels.shape[:2])
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        window = self._normalised([np.asarray(image)], self.clip)
        first, total = max(1, self.trunk.layers - _MAPS + 1), 0.0
        block, rows = self.last_block, self.patch_rows(window)

        def add(state: LayerState) -> None:
            nonlocal total
            total = total + state.attention[:, rows, rows]

        tokens = self.stream(window, Hook(add, range(first, self.trunk.layers), Attention.MAP))
        q, k = block.qkv(block.normed(tokens), "qk")
        total = total + attention_map(q, k).mean(1)[:, rows, rows]
        balanced = propagation(total / (self.trunk.layers - first + 1))[0]
        return Looked(pixels, tokens, balanced, self.grid(window), rows)

    def _normalised(self, pictures: Sequence[np.ndarray], clip: FrozenCLIP) -> Tensor:
        planes = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return clip.normalise(planes.to(clip.device))

    # ------------------------------------------------------------------ one round
    def maps(self, looked: Looked, texts: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (K, N) of unit texts (K, D) in [0, 1], and z (K + W,).

        Where a text's map is all zero it is made again without background words.
        """
        found, z = self._cam(looked, texts, background)
        empty = found.amax(1) == 0
        if len(background) and bool(empty.any()):
            again, _ = self._cam(looked, texts, background[:0])
            found = torch.where(empty[:, None], again, found)
        return found, z

    def _cam(self, looked: Looked, texts: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        trunk, rows = self._differentiable, looked.rows
        block = trunk.blocks[-1]
        with torch.inference_mode(False), torch.enable_grad():
            tokens = looked.tokens.clone()
            every = torch.cat([texts, background]).clone()
            normed = block.normed(tokens).detach()
            a = normed[:, rows].clone().requires_grad_()
            inputs = torch.cat([normed[:, : rows.start], a, normed[:, rows.stop :]], 1)
            q, k, v = block.qkv(inputs, grid=looked.grid)
            tokens = tokens + block.project(attention_map(q, k).to(v.dtype) @ v)
            tokens = tokens + block.mlp(tokens)
            vector = l2_normalise(trunk.readout(tokens[:, rows]).float().mean(1))
            z = likelihood(vector, every, self.clip.logit_scale)[0]
            # in half precision small gradients would vanish; the maps' scale is taken off again
            scale = 1024.0 if a.dtype == torch.float16 else 1.0
            wanted = scale * torch.eye(len(z), device=z.device)[: len(texts)]
            alphas = []
            for some in wanted.split(_AT_ONCE):
                (grad,) = torch.autograd.grad(z, a, some, retain_graph=True, is_grads_batched=True)
                alphas.append(grad[:, 0].float().mean(1) / scale)
        found = (torch.cat(alphas) @ a[0].detach().float().T).clamp(min=0)
        return scaled(scaled(found)), z.detach()  # twice as coded: tiny ones reach 1, too

    @property
    def _differentiable(self) -> ImageTrunk:
        """The trunk; a copy of one that was loaded in inference mode, whose weights autograd
        refuses.
        """
        visual = self.trunk.visual
        if not any(own.is_inference() for own in visual.parameters()):
            return self.trunk
        if self._copy is None or self._copy.tower.device != self.clip.device:
            with torch.inference_mode(False):
                self._copy = ImageTrunk(copy.deepcopy(visual))
        return self._copy

    def spread(self, maps: Tensor, looked: Looked) -> Tensor:
        """M (K, H, W) of maps (K, N): from the boxes of each along the affinity, at the pixels."""
        masks = self.boxes(maps, looked.grid).to(maps).flatten(1)
        grown = scaled((masks * maps) @ looked.affinity.T).unflatten(1, looked.grid)
        size = looked.pixels.shape[:2]
        return F.interpolate(grown[None], size=size, mode="bilinear", align_corners=False)[0]

    def boxes(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        """The union of each map's boxes, (K, h, w) bool on the CPU."""
        heats = maps.unflatten(1, grid).float().nan_to_num(0).cpu().numpy()
        return torch.from_numpy(np.stack([mask_of(heat, self.clipes_threshold) for heat in heats]))

    def confidence(
        self, pixels: np.ndarray, masks: Tensor, texts: Tensor, prompts: Sequence[VisualPrompt]
    ) -> Tensor:
        """The score of each text (K,), from masks M (K, H, W) and its sentences (K, 15, D')."""
        heats = masks.float().cpu().numpy()
        pictures = prompted(pixels, heats, self.mask_threshold, prompts)
        side = self._judge.trunk.native_grid[0] * self._judge.trunk.patch
        images = self._normalised([centre_crop(own, side) for own in pictures], self._judge)
        vectors = self.class_vectors(images)
        scale = self._judge.logit_scale
        summed = sum(likelihood(vectors, texts[:, i], scale) for i in range(texts.shape[1]))
        return summed.softmax(1).diagonal()

    def class_vectors(self, images: Tensor) -> Tensor:
        """Unit image embeddings (K, D') of the scorer, of the tokens after ``scorer_block``."""
        trunk = self._judge.trunk
        last = trunk.layers - (self.scorer_block == "L-1")
        groups = images.split(trunk.windows_at_once(*images.shape[-2:]))
        grid = trunk.grid_of(*images.shape[-2:])
        return l2_normalise(
            torch.cat([trunk.pooled(trunk.run(some, last=last), grid) for some in groups])
        )

    # ------------------------------------------------------------------ rounds
    def recur(
        self,
        looked: Looked,
        known: Sentences,
        members: Tensor,
        background: Tensor,
        prompts: Sequence[VisualPrompt],
    ) -> tuple[Tensor, Tensor]:
        """Which of the texts ``members`` (n,) stay (K,), and their maps M (K, H, W)."""
        before, texts = None, known.bare
        while True:
            maps, _ = self.maps(looked, texts[members], background)
            masks = self.spread(maps, looked)
            scores = self.confidence(looked.pixels, masks, known.scored[members], prompts)
            stays = scores > self.confidence_threshold
            if not bool(stays.any()):
                stays[scores.argmax()] = True
            if int(stays.sum()) == before:
                return members, masks
            before, members, texts = int(stays.sum()), members[stays], known.clean

    def score(self, view: View, text: Text) -> Tensor:
        """M of each query, (H, W, Q) at the picture's pixels.

        Raises:
            SFPError: the window isn't the whole image, the text has no bank, or a word of stuff is
                none of the vocabulary's.
        """
        if view.boxes.tolist() != [[0, 0, *view.image.shape[1:]]]:
            raise SFPError(
                f"CaR takes whole images, but got windows of {view.size[0]}x{view.size[1]} of one;"
                " give window=0."
            )
        known, looked = self.sentences(text), view.looked
        things, stuff = self.members(text)
        shape = (len(text), *looked.pixels.shape[:2])
        found = torch.zeros(shape, device=looked.tokens.device)
        if len(stuff):
            prompts = self.visual_prompts if self.stuff_prompts is None else self.stuff_prompts
            stay, masks = self.recur(looked, known, stuff, known.clean[things], prompts)
            found[stay] = masks
        if len(things):
            stay, masks = self.recur(looked, known, things, known.background, self.visual_prompts)
            best = masks.amax(0)
            over = best > (1 - best) ** self.bg_factor  # painted over stuff
            found[stay] = masks * over if len(stuff) else masks
            found[stuff] *= ~over
        return found.permute(1, 2, 0)

    # ------------------------------------------------------------------ text
    def foreground(self, text: Text) -> Tensor:
        """Which queries are no background words, (Q,) bool."""
        background = self.background_class
        if background is None:
            background = bool(text.words) and text.words[0].lower() == "background"
        return torch.tensor([not (background and place == 0) for place in text.class_of_query])

    def members(self, text: Text) -> tuple[Tensor, Tensor]:
        """The numbers of the queries that are things, and of those that are stuff."""
        for word in self.stuff:
            if word not in text.words:
                close = difflib.get_close_matches(word, text.words, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "give words that it has."
                raise SFPError(f"stuff of CaR names {word!r}, no word of the vocabulary; {hint}")
        is_stuff = torch.tensor([word in self.stuff for word in text.words], dtype=torch.bool)
        asked = self.foreground(text)
        device = self.clip.device
        things, stuff = ((asked & own).nonzero()[:, 0] for own in (~is_stuff, is_stuff))
        return things.to(device), stuff.to(device)

    def sentences(self, text: Text) -> Sentences:
        """The vectors of a vocabulary; kept until another one is asked for.

        Raises:
            SFPError: the text has no words, or no bank that could encode more.
        """
        if text.bank is None or not text.words:
            raise SFPError(
                "CaR asks its own sentences of the words, but this text has vectors alone; give a"
                " Text with words and a bank, such as Pipeline.encode_text returns."
            )
        key = (text.words, tuple(self.background_words))
        if key not in self._asked:
            bank, words = text.bank, text.words
            scorer = TextBank(self._judge, SENTENCES, bank.cache_dir or False)
            clean = text.describe(
                [[_CLEAN.format(word)] for word in (*words, *self.background_words)]
            )
            self._asked = {
                key: Sentences(
                    text.describe([[word] for word in words]),
                    clean[: len(words)],
                    scorer.encode_prompts(words),
                    clean[len(words) :],
                )
            }
        return self._asked[key]

    def decide(self, scores: Tensor, text: Text) -> Tensor:
        """The maps, and (1 - max_k M_k)^bg_factor for a background."""
        background = ~self.foreground(text).to(scores.device)
        left = (1 - scores.amax(-1, keepdim=True)).clamp(min=0) ** self.bg_factor
        return torch.where(background, left, scores)


def scaled(maps: Tensor) -> Tensor:
    """Maps (K, N) with their minimum at 0 and their maximum at 1; 0 where nothing differs."""
    maps = maps - maps.amin(1, keepdim=True)
    return maps / (1e-15 + maps.amax(1, keepdim=True))


def likelihood(images: Tensor, texts: Tensor, scale: float) -> Tensor:
    """softmax over texts of the scaled cosines of unit images (B, D) and texts (K, D)."""
    return (scale * images @ texts.T).softmax(1)


def centre_crop(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle square of a picture resized bicubic to a short side, (side, side, 3) uint8."""
    height, width = pixels.shape[:2]
    factor = side / min(height, width)
    height, width = (max(side, int(factor * own)) for own in (height, width))
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return np.asarray(image)[top : top + side, left : left + side]
