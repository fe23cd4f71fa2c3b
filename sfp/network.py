"""Downloads: whether a host answers, asked once, so that its absence is known in seconds; and whether what came is what was meant."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

from sfp.errors import SFPError
from sfp.files import file_digest

_PATIENCE = 6.0  # seconds


def hub() -> str:
    """The address of Hugging Face's hub, or of its mirror in ``HF_ENDPOINT``."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def why_unreached(host: str) -> str | None:
    """Why nothing can be fetched from an address, as half a sentence; None where somebody answers."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"

    def ask() -> bool:
        request = urllib.request.Request(host, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE).close()
        except urllib.error.HTTPError:
            return True  # somebody answered
        except (TimeoutError, urllib.error.URLError, OSError):
            return False
        return True

    pool = ThreadPoolExecutor(1)  # a hanging name lookup obeys no timeout of urllib's
    try:
        reached = pool.submit(ask).result(timeout=_PATIENCE + 1)
    except FutureTimeout:
        reached = False
    finally:
        pool.shutdown(wait=False)
    return None if reached else "there is no network"


def published_sha256(path: Path, url: str = "") -> str:
    """The SHA-256 of a downloaded file, or its first digits, as its source published it; empty where none is known.

    Hugging Face's cache names a large file by it, OpenAI's addresses hold it, and open_clip's releases its first eight digits.
    """
    blob = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob):
        return blob
    if Path(url).name != path.name:
        return ""
    if "openaipublic" in url:
        return url.split("/")[-2]
    if "mlfoundations" in url:
        return Path(url).stem.split("-")[-1]
    return ""


def require_published(path: Path, url: str = "") -> None:
    """Raises SFPError where a downloaded file is not the one that was published; nothing where no SHA-256 is known."""
    published = published_sha256(path, url)
    if not published:
        return
    found = file_digest(path, "sha256")
    if not found.startswith(published):
        raise SFPError(
            f"{path} has the SHA-256 {found[:16]}..., not the published {published[:16]}...; delete it, so that it is fetched again."
        )
