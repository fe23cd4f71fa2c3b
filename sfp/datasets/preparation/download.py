"""Fetching the archives that need no registration: continued where it stopped, verified before it is used."""

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
    """A published archive: ``checksum`` as ``md5:...`` or ``sha1:...``; empty where none is known, then its length is verified."""

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
    """The archive in ``folder``, fetched if it is not there; it gets its name only once it is verified.

    Args:
        mirror: an address that has the file under its own name, instead of the owners'.

    Raises:
        SFPError: nobody answers, the connection breaks again and again, or the file is not the published one.
    """
    target = folder / archive.name
    if target.is_file():
        return target
    with only_one(folder, "--out", f".{archive.name}.lock"):
        return _fetch(archive, target, mirror)


def _fetch(archive: Archive, target: Path, mirror: str | None) -> Path:
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    partial = target.with_name(f"{archive.name}.partial")
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _continue(url, partial)
            break
        except urllib.error.HTTPError as error:
            raise SFPError(
                f"{url} can't be fetched ({error}); give --mirror another address, or --source the file."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            have = partial.stat().st_size if partial.exists() else 0
            failures = failures + 1 if have == before else 0
            if failures < _ATTEMPTS:
                continue
            if not have:
                raise SFPError(
                    f"{url} can't be reached ({error}); look at the network, or give --mirror or --source."
                ) from error
            raise SFPError(
                f"{url} broke off after {have} bytes ({error}); the same command goes on from there, or give --source the file."
            ) from error
    _verify(archive, url, partial)
    partial.replace(target)
    return target


def _continue(url: str, partial: Path) -> None:
    """Append to ``partial`` what it lacks; raises OSError or HTTPException where the connection breaks."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is lacking
        if error.code != 416:
            raise
        partial.unlink()  # longer than the file itself
        raise ConnectionError(
            "the part fetched before is not of this file; it was deleted"
        ) from error
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            partial.open("ab" if goes_on else "wb") as writer,
            tqdm(
                total=total,
                initial=have,
                desc=f"fetching {partial.stem}",
                unit="B",
                unit_scale=True,
            ) as bar,
        ):
            while chunk := answer.read(_CHUNK):
                writer.write(chunk)
                bar.update(len(chunk))
        if total is not None and partial.stat().st_size != total:
            raise ConnectionError(f"{total} bytes were announced")


def _verify(archive: Archive, url: str, partial: Path) -> None:
    if not archive.checksum:
        return
    kind, _, published = archive.checksum.partition(":")
    found = file_digest(partial, kind)
    if found != published:
        partial.unlink()
        raise SFPError(
            f"{url} has the {kind} {found}, not the published {published}, and was deleted; fetch it again or elsewhere."
        )
