"""Downloads: whether an address answers, within seconds, and whether a file is as published."""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

from huggingface_hub import constants

from sfp.errors import SFPError
from sfp.files import file_digest

_PATIENCE = 6.0  # seconds


def hub() -> str:
    """The address of Hugging Face's hub, or of its mirror in ``HF_ENDPOINT``."""
    return constants.ENDPOINT


def why_unreached(address: str) -> str | None:
    """Why nothing can be fetched from an address, as half a sentence; None where it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        with contextlib.suppress(urllib.error.HTTPError):  # an answer, too
            urllib.request.urlopen(request, timeout=_PATIENCE).close()

    pool = ThreadPoolExecutor(1)  # a hanging name lookup obeys no timeout of urllib's
    try:
        pool.submit(ask).result(timeout=_PATIENCE + 1)
    except (OSError, FutureTimeout):
        return "there is no network"
    finally:
        pool.shutdown(wait=False)
    return None


def url_sha256(url: str) -> str:
    """The SHA-256 in an address of weights, or its first digits; empty where it has none.

    OpenAI's addresses hold all of it, open_clip's releases end in its first eight digits.
    """
    if "openaipublic" in url:
        return url.split("/")[-2]
    last = Path(url).stem.split("-")[-1]
    return last if "mlfoundations" in url and re.fullmatch("[0-9a-f]{8}", last) else ""


def published_sha256(path: Path, url: str = "") -> str:
    """The SHA-256 of a downloaded file, or its first digits, as published; empty where unknown.

    Hugging Face's cache names a large file by it; for other files see ``url_sha256``.
    """
    blob = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob):
        return blob
    return url_sha256(url) if Path(url).name == path.name else ""


def require_published(path: Path, url: str = "") -> None:
    """Raises SFPError where a downloaded file's SHA-256 is known and is not the published one."""
    published = published_sha256(path, url)
    if published and not (found := file_digest(path, "sha256")).startswith(published):
        raise SFPError(
            f"{path} has the SHA-256 {found[:16]}..., not the published {published[:16]}...; "
            "delete it, so that it is fetched again."
        )
