"""Fetching archives that need no registration: continued where it stopped, verified before use."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sfp.errors import SFPError
from sfp.files import file_digest, only_one

_ATTEMPTS = 3  # in a row that bring nothing new
_PATIENCE = 60.0  # seconds without a byte
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        url: the owners' address.
        checksum: ``md5:...`` or ``sha1:...``; empty where none is known, then its length is
            verified.
    """

    url: str
    checksum: str = ""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


VOC2012 = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "md5:6cd6e144f989b92b3379bac3b3de84fd",
)
ADE20K = Archive(
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
)
COCO_VAL2017 = Archive(
    "http://images.cocodataset.org/zips/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80"
)
COCO_STUFF_MAPS = Archive(
    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
)


def fetch(archive: Archive, folder: Path, mirror: str | None = None) -> Path:
    """The archive in ``folder``, fetched if it is not there, verified each time.

    It gets its name once it is verified.

    Args:
        archive: what to fetch.
        folder: where it lies, made if it is missing.
        mirror: an address that has the file under its own name, instead of the owners'.

    Raises:
        SFPError: nobody answers, the connection breaks again and again, or the file is not the
            published one.
    """
    target = folder / archive.name
    if target.is_file():
        if wrong := _difference(archive, target):
            raise SFPError(f"{target} {wrong}; delete it, so that it is fetched again.")
    else:
        url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        with only_one(folder, "--out", f".{archive.name}.lock"):
            partial = target.with_name(f"{archive.name}.partial")
            _fetch(url, partial)
            if wrong := _difference(archive, partial):
                partial.unlink()
                raise SFPError(f"{url} {wrong}, and was deleted; fetch it again or elsewhere.")
            partial.replace(target)
    return target


def _fetch(url: str, partial: Path) -> None:
    failures = 0
    while True:
        before = _size(partial)
        try:
            return _continue(url, partial)
        except urllib.error.HTTPError as error:
            raise SFPError(
                f"{url} can't be fetched ({error}); give --mirror another address, or --source the "
                "file."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            size = _size(partial)
            failures = failures + 1 if size == before else 0
            if failures < _ATTEMPTS:
                continue
            reason = f"{url} can't be reached ({error}); look at the network, or give --mirror or"
            if size:
                reason = (
                    f"{url} broke off after {size} bytes ({error}); the same command goes on from "
                    "there, or give"
                )
            raise SFPError(f"{reason} --source the file.") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, partial: Path) -> None:
    """Append what ``partial`` lacks; OSError or HTTPException where the connection breaks."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is lacking
        partial.unlink()  # longer than the file itself
        raise ConnectionError("the part fetched before was of another file: deleted") from error
    with answer:
        starts = answer.headers.get("Content-Range", "")
        if answer.status != 206 or not starts.startswith(f"bytes {have}-"):
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(
            desc=f"fetching {partial.stem}", initial=have, total=total, unit="B", unit_scale=True
        )
        with partial.open("ab" if have else "wb") as writer, bar:
            while chunk := answer.read(_CHUNK):
                writer.write(chunk)
                bar.update(len(chunk))
        if total is not None and _size(partial) != total:
            raise ConnectionError(f"{total} bytes were announced")


def _difference(archive: Archive, path: Path) -> str | None:
    """How a file differs from the published archive, as a sentence's part; None if it doesn't."""
    kind, _, published = archive.checksum.partition(":")
    found = file_digest(path, kind) if published else ""
    return f"has the {kind} {found}, not the published {published}" if found != published else None
