"""Texts to token ids, by the tokenizer that a CLIP was trained with: open_clip's own of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_url
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from sfp.clip.models import require_transformers
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.network import cached_hub_file, why_unreached

_CONFIG = "tokenizer_config.json"


class Tokenizer:
    """A CLIP's tokenizer, loaded when it is first asked.

    Args:
        text_cfg: open_clip's config of the text tower.
        source: a folder with the tokenizer's files, where the config names one of Hugging Face;
            the one that it names if None.
        model: what it is of, for errors.

    Attributes:
        context: how many tokens a text may have, marks of its start and end included.
    """

    def __init__(self, text_cfg: Mapping[str, Any], model: str, source: str | None = None):
        self.config, self.model = dict(text_cfg), model
        self.context: int = self.config.get("context_length", 77)
        named = self.config.get("hf_tokenizer_name")
        self._name = (source or named) if named else None
        self._own: Any = None

    @property
    def own(self) -> Any:
        """open_clip's tokenizer: a ``SimpleTokenizer``, or an ``HFTokenizer``.

        Raises:
            SFPError: transformers is not installed, or the tokenizer's files can't be had.
        """
        if self._own is None:
            self._own = self._load()
        return self._own

    def _load(self) -> Any:
        options = dict(self.config.get("tokenizer_kwargs") or {})
        if self._name is None:
            return open_clip.SimpleTokenizer(context_length=self.context, **options)
        require_transformers(f"The tokenizer of {self.model}")
        mode = self.config.get("tokenizer_mode")
        if why := self._why_unreached():
            raise self._missing(why)
        try:
            return HFTokenizer(self._name, self.context, tokenizer_mode=mode, **options)
        except Exception as error:  # the hub's, transformers' and tokenizers' have no common base
            refuse_want_of_memory(error, f"loading the tokenizer {self._name}")
            reason = (str(error).strip() or type(error).__name__).split("\n")[0][:160]
            raise self._missing(reason) from error

    def _why_unreached(self) -> str | None:
        """Why a tokenizer of Hugging Face that isn't here can't be fetched; None if it can be, or
        is here. transformers would wait for a hub that doesn't answer for minutes.
        """
        if Path(self._name).is_dir() or cached_hub_file(self._name, _CONFIG):
            return None
        return why_unreached(hf_hub_url(self._name, _CONFIG))

    def _missing(self, why: str) -> SFPError:
        return SFPError(
            f"The tokenizer {self._name!r} of {self.model} can't be had ({why}); bring its files"
            " (tokenizer.json and tokenizer_config.json) into one folder with the model's weights"
            " and config, and give that folder as pretrained."
        )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (n, T) on the CPU: T the longest text's length, or the whole context where the
        tokenizer is one of Hugging Face.

        Raises:
            SFPError: a text has more tokens than the context holds, or one that stands for a text's
                start or end.
        """
        if isinstance(self.own, HFTokenizer):
            ids = self.own.tokenizer([self.own.clean_fn(text) for text in texts]).input_ids
            for text, tokens in zip(texts, ids, strict=True):
                self._require_room(text, len(tokens))
            return self.own(list(texts))
        marks = (self.own.sot_token_id, self.own.eot_token_id)
        ids = [torch.tensor([marks[0], *self.own.encode(text), marks[1]]) for text in texts]
        for text, tokens in zip(texts, ids, strict=True):
            self._require_room(text, len(tokens))
            if set(marks) & set(tokens[1:-1].tolist()):
                raise SFPError(
                    f"The text {text[:80]!r} has CLIP's own mark for a text's start or end; "
                    "take it out."
                )
        return nn.utils.rnn.pad_sequence(ids, batch_first=True)

    def _require_room(self, text: str, tokens: int) -> None:
        if tokens > self.context:
            shown = f"{text[:80]} ..." if len(text) > 80 else text
            raise SFPError(
                f"The text {shown!r} has {tokens - 2} tokens, but CLIP reads "
                f"{self.context - 2}; shorten the name in it."
            )

    def digest(self) -> str:
        """What of it, and of the text tower's config, changes vectors besides the weights."""
        if self._name is None and set(self.config) <= {
            "context_length", "vocab_size", "width", "heads", "layers",
        }:  # fmt: skip
            return f"{type(self.own).__name__}/{self.own.vocab_size}/{self.context}"
        parts = [json.dumps(self.config, sort_keys=True)]
        if isinstance(self.own, HFTokenizer):
            backend = getattr(self.own.tokenizer, "backend_tokenizer", None)
            vocabulary = self.own.tokenizer.get_vocab
            parts.append(backend.to_str() if backend else json.dumps(vocabulary(), sort_keys=True))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
