"""The text side: query words through prompts to one unit vector each, cached on disk (methods.md 3.1-3.2)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from sfp.clip.clip import FrozenCLIP, unit
from sfp.clip.prompts import PROMPT_SETS
from sfp.errors import SFPError, unknown_choice
from sfp.files import whole_file
from sfp.options import check_type

_TOKENS = 2048  # in a batch of texts; many more on a GPU


def default_cache_dir() -> Path:
    """``$SFP_CACHE``, or ``sfp`` in the user's cache folder."""
    if "SFP_CACHE" in os.environ:
        return Path(os.environ["SFP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sfp"


class TextBank:
    """Text vectors of query words for one CLIP.

    Args:
        clip: the frozen CLIP.
        prompts: a name in ``PROMPT_SETS``, or the prompts themselves, each with one ``{}``.
        cache_dir: where vectors are kept; ``default_cache_dir()`` if None, nowhere if False.
    """

    def __init__(self, clip: FrozenCLIP, prompts: str | Sequence[str] = "imagenet80", cache_dir: str | os.PathLike | bool | None = None):
        if isinstance(prompts, str):
            if prompts not in PROMPT_SETS:
                raise unknown_choice("prompt set", prompts, PROMPT_SETS)
            prompts = PROMPT_SETS[prompts]
        check_type("prompts", prompts, Sequence[str])
        if not prompts:
            raise SFPError(f"prompts is {prompts!r}; give at least one, such as 'a photo of a {{}}.', or one of {', '.join(PROMPT_SETS)}.")
        for prompt in prompts:
            if prompt.count("{}") != 1 or set(prompt.replace("{}", "", 1)) & set("{}"):
                raise SFPError(f"The prompt {prompt!r} needs exactly one {{}} where the name goes, and no other braces; write it so.")
        self.clip, self.prompts = clip, tuple(prompts)
        self.cache_dir = None if cache_dir is False else Path(cache_dir) if cache_dir else default_cache_dir()

    def encode(self, queries: Sequence[str]) -> Tensor:
        """Unit vectors (Q, D) float32: prompts encoded, normalised, averaged, normalised.

        Equal queries are encoded once; vectors of a vocabulary that was seen before come from the cache.

        Raises:
            SFPError: no query, or one that CLIP can't read whole.
        """
        if isinstance(queries, str) or not queries:
            raise SFPError(f"The words to encode are {queries!r}; give a list of at least one.")
        unique = list(dict.fromkeys(queries))
        file = self._cache_file(unique)
        vectors = self._read(file, len(unique)) if file else None
        if vectors is None:
            vectors = self._encode(unique)
            if file:
                _keep(file, vectors)
        vectors = vectors.to(self.clip.device)
        return vectors[torch.tensor([unique.index(query) for query in queries], device=vectors.device)]

    @torch.inference_mode()
    def _encode(self, queries: Sequence[str]) -> Tensor:
        texts = [prompt.format(query) for query in queries for prompt in self.prompts]
        unique = sorted(set(texts))
        ids = self.clip.tokenize(unique)
        lengths, order = (ids.argmax(1) + 1).sort(descending=True)  # like lengths share a batch, cut to its longest
        tokens = _TOKENS if self.clip.device.type == "cpu" else 32 * _TOKENS
        rows = torch.empty(len(unique), self.clip.embed_dim, device=self.clip.device)
        with tqdm(total=len(unique), desc="encoding names", unit="text", disable=len(unique) < 2000, leave=False) as bar:
            first = 0
            while first < len(unique):
                longest = int(lengths[first])
                some = order[first : first + max(1, tokens // longest)]
                rows[some.to(rows.device)] = unit(self.clip.encode_text(ids[some, :longest]))
                first += len(some)
                bar.update(len(some))
        place = {text: i for i, text in enumerate(unique)}
        rows = rows[torch.tensor([place[text] for text in texts], device=self.clip.device)]
        return unit(rows.unflatten(0, (len(queries), len(self.prompts))).mean(1)).cpu()

    def _cache_file(self, queries: Sequence[str]) -> Path | None:
        if self.cache_dir is None:
            return None
        digest = hashlib.sha256()
        tokenizer = f"{type(self.clip.tokenizer).__name__}/{self.clip.tokenizer.vocab_size}/{self.clip.model.context_length}"
        for part in (self.clip.fingerprint, str(self.clip.quick_gelu), tokenizer, *self.prompts, "", *queries):
            digest.update(part.encode() + b"\0")
        return self.cache_dir / "text" / f"{digest.hexdigest()}.safetensors"

    def _read(self, file: Path, count: int) -> Tensor | None:
        if not file.is_file():
            return None
        try:
            vectors = load_file(file)["vectors"]
        except (SafetensorError, KeyError, OSError):
            return None  # damaged: made again and written over
        sound = vectors.shape == (count, self.clip.embed_dim) and bool(torch.isfinite(vectors).all())
        return vectors if sound else None


def _keep(file: Path, vectors: Tensor) -> None:
    """Put vectors into the cache.

    Raises:
        SFPError: the cache folder can't be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            save_file({"vectors": vectors.contiguous()}, partial)
    except (OSError, SafetensorError) as error:
        raise SFPError(
            f"The text cache {file.parent} can't be written ({error}); set SFP_CACHE to a folder that can, or text_cache=False."
        ) from error
