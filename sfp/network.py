"""Downloads: each ends, with the whole file or with one sentence, and what is kept is as published.

Whoever sends nothing is given up after ``_TRIES`` times ``patience()`` seconds, with a pause of a
tenth of it, at most a second, between two tries.
"""

from __future__ import annotations

import errno
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

from huggingface_hub import constants

from sfp.errors import SFPError, refuse_want_of_memory
from sfp.files import file_digest, make_folder, unwritable
from sfp.progress import progress

_TRIES = 6  # in a row that bring nothing new, as huggingface_hub's
_CHUNK = 1 << 18
_LATER = (408, 429, 500, 502, 503, 504)  # statuses that may pass
_OF_THE_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EEXIST,
)  # fmt: skip


def patience() -> float:
    """How many seconds a server may send nothing: ``HF_HUB_DOWNLOAD_TIMEOUT``, 10 unless set."""
    return constants.HF_HUB_DOWNLOAD_TIMEOUT


def hub() -> str:
    """The address of Hugging Face's hub, or of its mirror in ``HF_ENDPOINT``."""
    return constants.ENDPOINT


def why_unreached(address: str) -> str | None:
    """Why nothing can be fetched from an address, as half a sentence; None where it answers.

    It is asked for its headers alone, and waited for as long as ``patience()``.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"

    def ask() -> str | None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=patience()).close()
        except urllib.error.HTTPError as error:  # an answer, too
            return f"{address} {_refusal(error)}" if 300 <= error.code < 400 else None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise error.reason from error
            raise
        return None

    pool = ThreadPoolExecutor(1)  # a hanging name lookup obeys no timeout of urllib's
    try:
        return pool.submit(ask).result(timeout=patience() + 1)
    except (TimeoutError, FutureTimeout):
        return f"{address} doesn't answer within {patience():g} seconds"
    except (OSError, http.client.HTTPException) as error:
        return f"there is no network or no server at {address} ({_reason(error)})"
    finally:
        pool.shutdown(wait=False)


# ----------------------------------------------------------------------------- from any address


def download(url: str, target: Path, wrong: Callable[[Path], str | None], advice: str) -> None:
    """Fetch a file, which gets its name once it is verified.

    What came before a connection broke lies beside it as ``.partial``. Each further try, of this
    call and of the next, goes on from there where the server can, and begins anew elsewhere.

    Args:
        url: http, https or file.
        target: where it shall lie; folders are made.
        wrong: what is wrong with a file, as a sentence's part, None if nothing.
        advice: what else the user can do, as a sentence's part.

    Raises:
        SFPError: nobody answers, the connection breaks again and again, a refusal, a web page
            instead of the file, something wrong, which is deleted, or a disk that takes no more.
    """
    partial = target.with_name(f"{target.name}.partial")
    make_folder(partial.parent)
    most, failures = _size(partial), 0
    while True:
        try:
            _continue(url, partial)
            break
        except _Refused as error:
            raise SFPError(f"{url} {error}; {advice}.") from error
        except _Broken as error:
            size = _size(partial)
            most, failures = max(most, size), 0 if size > most else failures + 1
            if failures < _TRIES:
                time.sleep(min(1.0, patience() / 10))
                continue
            said = f"{url} can't be reached ({error}); look at the network"
            if size:
                said = (
                    f"{url} broke off after {size} bytes ({error}); the same command goes on from "
                    "there where the server can"
                )
            raise SFPError(f"{said}, or {advice}.") from error
        except OSError as error:
            room = "make room, then the same command goes on"
            raise unwritable(partial, error, f"{room}, or {advice}") from error
    if said := wrong(partial):
        partial.unlink()
        raise SFPError(f"{url} {said}, and was deleted; try again later, or {advice}.")
    partial.replace(target)


class _Broken(Exception):
    """A connection that didn't bring all of a file, with the reason; another try may."""


class _Refused(Exception):
    """What a server says instead of sending a file, as half a sentence about the address."""


def _continue(url: str, partial: Path) -> None:
    """Append what ``partial`` lacks.

    Raises:
        _Broken, _Refused: no whole file.
        OSError: it can't be written.
    """
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=patience())
    except urllib.error.HTTPError as error:
        if error.code in _LATER:
            raise _Broken(_reason(error)) from error
        if error.code != 416:
            raise _Refused(_refusal(error)) from error
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is lacking
        partial.unlink()  # longer than the file itself
        raise _Broken("the part fetched before was of another file: deleted") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise _Refused("sends a web page instead of the file, as a network's log-in does")
        starts = answer.headers.get("Content-Range", "")
        if answer.status != 206 or not starts.startswith(f"bytes {have}-"):
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = progress(
            desc=f"fetching {partial.stem}", initial=have, total=total, unit="B", unit_scale=True
        )
        with partial.open("ab" if have else "wb") as writer, bar:
            while chunk := _read(answer):
                writer.write(chunk)
                bar.update(len(chunk))
        if total is not None and _size(partial) != total:
            raise _Broken(f"{total} bytes were announced")


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(_CHUNK)  # what came before a stall is kept
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refusal(error: urllib.error.HTTPError) -> str:
    """What a server's refusal says, as half a sentence about the address."""
    if 300 <= error.code < 400:  # urllib follows all others
        circle = "infinite loop" in str(error.reason)
        return "leads in a circle" if circle else f"leads nowhere ({_reason(error)})"
    return f"can't be fetched ({_reason(error)})"


def _reason(error: BaseException) -> str:
    """The first line of what an error says, or the cause that a library hides behind it."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(". ")


# ------------------------------------------------------------------------- from Hugging Face's hub


def cached_hub_file(repository: str, file: str) -> Path | None:
    """A file of a repository in the hub's cache, None where it isn't there.

    Raises:
        SFPError: no name of a repository.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, file)
    except ValueError as error:
        raise SFPError(
            f"{repository!r} is no name of a repository ({error}); write OWNER/NAME."
        ) from error
    return Path(found) if isinstance(found, str) else None


def hub_file(repository: str, file: str, what: str, advice: str) -> Path | None:
    """A file of a repository, from the hub's cache, or fetched into it by huggingface_hub and
    verified; None where the repository has none of that name.

    Args:
        what: what of it is wanted, as a sentence's subject in the plural, such as "The weights".
        advice: what else the user can do, as a sentence's part.

    Raises:
        SFPError: it can't be fetched, is not the published one, or can't be written. Nothing of it
            is kept then.
    """
    if path := cached_hub_file(repository, file):
        require_published(path)
        return path
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    url = hf_hub_url(repository, file)
    if why := why_unreached(url):
        raise SFPError(f"{what} are not on this machine and {why}; {advice}.")
    try:
        path = Path(hf_hub_download(repository, file))
    except Exception as error:  # httpx's, the hub's and the disk's
        hidden = isinstance(error, LocalEntryNotFoundError) and error.__cause__
        if isinstance(error, EntryNotFoundError) and not hidden:
            return None
        refuse_want_of_memory(error, f"downloading {file} of {repository}")
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            room = f"set HF_HOME to a folder with room that can be written, or {advice}"
            raise unwritable(Path(constants.HF_HUB_CACHE), error, room) from error
        raise SFPError(
            f"{what} are not on this machine and {url} can't be fetched "
            f"({_of_the_hub(hidden or error)}); {advice}."
        ) from error
    if said := difference(path, published_sha256(path)):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise SFPError(f"{url} {said}, and was deleted; try again later, or {advice}.")
    return path


def _of_the_hub(error: BaseException) -> str:
    """Why the hub sends no file, in words."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "its owner asks for consent on its page and for a login: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or a private one"
    return _reason(error)


# ------------------------------------------------------------------------------ what is published


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
    if said := difference(path, published_sha256(path, url)):
        raise SFPError(f"{path} {said}; delete it, so that it is fetched again.")


def difference(path: Path, published: str, kind: str = "sha256") -> str | None:
    """How a file differs from the published one, as a sentence's part; None if it doesn't.

    Args:
        published: its hash, or the first digits; empty where unknown, then nothing is compared.
        kind: of the hash, such as "md5".
    """
    found = file_digest(path, kind) if published else ""
    if found.startswith(published):
        return None
    name = "SHA-256" if kind == "sha256" else kind.upper()
    return f"has the {name} {found[:16]}..., not the published {published[:16]}..."
