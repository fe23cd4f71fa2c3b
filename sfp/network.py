"""Whether a download's host answers, asked once, so that its absence is known in seconds instead of a minute of retries."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

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
