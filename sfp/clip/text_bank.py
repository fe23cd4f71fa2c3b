"""Query words through prompts to one vector of length one each, cached on disk."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.clip.prompts import PROMPT_SETS, is_prompt_file, read_prompts
from sfp.errors import SFPError, unknown_choice
from sfp.files import make_folder, sweep, whole_file
from sfp.options import check_type
from sfp.progress import progress

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
        prompts: a name in ``PROMPT_SETS``, or the prompts themselves, each with one ``{}``, or a
            UTF-8 file with one in each line; in the language that the text tower reads.
        cache_dir: where vectors are kept; ``default_cache_dir()`` if None, nowhere if False.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        prompts: str | os.PathLike | Sequence[str] = "imagenet80",
        cache_dir: str | os.PathLike | Literal[False] | None = None,
    ):
        if isinstance(prompts, (str, os.PathLike)):
            if is_prompt_file(prompts):
                prompts = read_prompts(prompts)
            elif prompts in PROMPT_SETS:
                prompts = PROMPT_SETS[prompts]
            else:
                raise unknown_choice("prompt set", prompts, PROMPT_SETS)
        check_type("prompts", prompts, Sequence[str])
        check_type("text_cache", cache_dir, str | os.PathLike | Literal[False] | None)
        if not prompts:
            raise SFPError(
                f"prompts is {prompts!r}; give at least one, such as 'a photo of a {{}}.', "
                f"or one of {', '.join(PROMPT_SETS)}."
            )
        for prompt in prompts:
            if prompt.count("{}") != 1 or set(prompt.replace("{}", "", 1)) & set("{}"):
                raise SFPError(
                    f"The prompt {prompt!r} needs exactly one {{}} where the name goes, "
                    "and no other braces; write it so."
                )
        self.clip, self.prompts = clip, tuple(prompts)
        self.cache_dir = (
            None if cache_dir is False else Path(cache_dir) if cache_dir else default_cache_dir()
        )

    def encode(self, queries: Sequence[str]) -> Tensor:
        """Vectors (Q, D) float32 of length one: prompts encoded, normalised, averaged, normalised.

        Equal queries are encoded once; a vocabulary's vectors are kept in the cache.

        Raises:
            SFPError: no query, or one that CLIP can't read whole.
        """
        if isinstance(queries, str) or not queries:
            raise SFPError(f"The words to encode are {queries!r}; give a list of at least one.")
        unique = list(dict.fromkeys(queries))
        vectors = self._cached(unique, 1, lambda: l2_normalise(self._encode(unique).mean(1)))
        place = {query: i for i, query in enumerate(unique)}
        return vectors[[place[query] for query in queries]].to(self.clip.device)

    def encode_prompts(self, queries: Sequence[str]) -> Tensor:
        """Unit vectors of each query in each single prompt, (Q, P, D) float32; kept in the
        cache.
        """
        queries, prompts = list(queries), len(self.prompts)
        vectors = self._cached(queries, prompts, lambda: self._encode(queries).flatten(0, 1))
        return vectors.unflatten(0, (len(queries), prompts)).to(self.clip.device)

    def describe(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Vectors (Q, D) float32 of length one: each query's sentences encoded, normalised,
        averaged, normalised.
        """
        alone = TextBank(self.clip, ["{}"], self.cache_dir or False)
        rows = alone.encode([sentence for own in sentences for sentence in own])
        return l2_normalise(
            torch.stack([own.mean(0) for own in rows.split(list(map(len, sentences)))])
        )

    def _cached(self, queries: list[str], each: int, make: Callable[[], Tensor]) -> Tensor:
        """Vectors (Q * each, D) from the cache, else made and kept there."""
        file = self._cache_file(queries, each)
        vectors = self._read(file, each * len(queries)) if file else None
        if vectors is None:
            vectors = make()
            if file:
                _keep(file, vectors)
        return vectors

    @torch.inference_mode()
    def _encode(self, queries: Sequence[str]) -> Tensor:
        texts = [prompt.format(query) for query in queries for prompt in self.prompts]
        unique = sorted(set(texts))
        ids = self.clip.tokenize(unique)
        # like lengths share a batch, cut to its longest
        lengths, order = self.clip.text_tower.lengths(ids).sort(descending=True)
        tokens = _TOKENS if self.clip.device.type == "cpu" else 32 * _TOKENS
        rows = torch.empty(len(unique), self.clip.embed_dim, device=self.clip.device)
        quiet, first = len(unique) < 2000, 0
        with progress(total=len(unique), desc="encoding names", disable=quiet, leave=False) as bar:
            while first < len(unique):
                longest = int(lengths[first])
                some = order[first : first + max(1, tokens // longest)]
                rows[some.to(rows.device)] = l2_normalise(
                    self.clip.encode_text(ids[some, :longest])
                )
                first += len(some)
                bar.update(len(some))
        place = {text: i for i, text in enumerate(unique)}
        rows = rows[[place[text] for text in texts]]
        return rows.unflatten(0, (len(queries), len(self.prompts))).cpu()

    def _cache_file(self, queries: Sequence[str], each: int = 1) -> Path | None:
        if self.cache_dir is None:
            return None
        digest, clip = hashlib.sha256(), self.clip
        model = (clip.fingerprint, str(clip.quick_gelu), clip.text.digest())
        for part in (*model, *self.prompts, "", *queries):
            digest.update(part.encode() + b"\0")
        if each > 1:  # single prompts
            digest.update(str(each).encode())
        return self.cache_dir / "text" / f"{digest.hexdigest()}.safetensors"

    def _read(self, file: Path, count: int) -> Tensor | None:
        """The vectors in a file of the cache; None where there is none or it is damaged."""
        try:
            entry = load(file.read_bytes())  # at once: another process may replace the file
            vectors, digest = entry["vectors"], entry["sha256"]
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(file)  # used now, for ``_bound``
        sizes = vectors.dtype == torch.float32 and vectors.shape == (count, self.clip.embed_dim)
        return vectors if sizes and digest.tolist() == _digest(vectors).tolist() else None


def _digest(vectors: Tensor) -> Tensor:
    """The SHA-256 of vectors, 32 uint8."""
    return torch.tensor(list(hashlib.sha256(vectors.numpy().tobytes()).digest()), dtype=torch.uint8)


def _keep(file: Path, vectors: Tensor) -> None:
    """Put vectors into the cache, and delete what was not used for longest beyond its bound.

    Raises:
        SFPError: the cache folder can't be written, or ``SFP_CACHE_MIB`` is no number.
    """
    advice = "set SFP_CACHE to a folder that can, or text_cache=False"
    most = cache_bound()
    make_folder(file.parent, advice)
    with whole_file(file, advice) as partial:
        vectors = vectors.contiguous()
        partial.write_bytes(save({"vectors": vectors, "sha256": _digest(vectors)}))
    _bound(file, most)


def cache_bound() -> int:
    """How many bytes the text cache may take: ``$SFP_CACHE_MIB`` in MiB, 256 unless it is set.

    Raises:
        SFPError: it is no number.
    """
    given = os.environ.get("SFP_CACHE_MIB", "256")
    if not given.isdecimal():
        raise SFPError(f"SFP_CACHE_MIB is {given!r}; set it to a whole number of MiB, such as 256.")
    return int(given) << 20


def text_files(folder: Path) -> list[Path]:
    """The text cache's own files in a folder: named by 64 digits of a hash."""
    names = re.compile(r"[0-9a-f]{64}")
    return [path for path in folder.glob("*.safetensors") if names.fullmatch(path.stem)]


def _bound(newest: Path, most: int) -> None:
    """Delete the files that were not used for longest, beyond so many bytes; never the newest one.

    A clock that was wrong costs no more than encoding again.
    """
    sweep(newest.parent)
    used: list[tuple[float, int, Path]] = []
    for path in text_files(newest.parent):
        with contextlib.suppress(FileNotFoundError):  # another process took it out
            details = path.stat()
            used.append((details.st_mtime if path != newest else math.inf, details.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= most or path == newest:
            return
        path.unlink(missing_ok=True)
        total -= size
