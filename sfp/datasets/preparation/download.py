"""Fetching archives that need no registration: continued where it stopped, verified before use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfp.errors import SFPError
from sfp.files import only_one
from sfp.network import difference, download


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

    def difference(self, path: Path) -> str | None:
        """How a file differs from it, as a sentence's part; None if it doesn't."""
        kind, _, published = self.checksum.partition(":")
        return difference(path, published, kind)


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
        SFPError: see ``sfp.network.download``.
    """
    target = folder / archive.name
    if target.is_file():
        if wrong := archive.difference(target):
            raise SFPError(f"{target} {wrong}; delete it, so that it is fetched again.")
    else:
        url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        with only_one(folder, "--out", f".{archive.name}.lock"):
            advice = "give --mirror another address, or --source the file"
            download(url, target, archive.difference, advice)
    return target
