"""What a user gives as the source: folders, files and archives, which are unpacked first."""

from __future__ import annotations

import fnmatch
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from sfp.errors import SFPError
from sfp.files import sweep, whole_file
from sfp.progress import progress

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Sources:
    """The places to look in.

    Args:
        paths: folders, files, and archives (tar, zip).
        unpack_to: folder for what is unpacked.
        needed: patterns of the archives' members that are needed, such as ``*/val2017/*.png``.

    Raises:
        SFPError: a path that does not exist, or an archive that is broken or not safe to unpack.
    """

    def __init__(self, paths: Sequence[Path], unpack_to: Path, needed: Sequence[str]):
        self.given = list(paths)
        self.places: list[Path] = []
        for number, path in enumerate(paths):
            if not path.exists():
                raise SFPError(
                    f"The source {path} does not exist; give --source a folder or an archive that "
                    "does."
                )
            if path.is_file() and path.name.endswith((".zip", *_TAR)):
                details = path.stat()  # another archive of that name gets another folder
                mark = f"{details.st_size}-{details.st_mtime_ns}"
                folder = unpack_to / f"{number}_{mark}_{path.name}"
                unpack(path, folder, needed)
                path = folder
            self.places.append(path)

    def folder(self, pattern: str, *paths: str) -> Path:
        """The first of the folders ``paths`` that has files like ``pattern``.

        ``a/b/c`` is looked for as ``a/b/c``, ``b/c``, ``c`` and as the given folder itself.

        Raises:
            SFPError: it is nowhere.
        """
        for path in paths:
            for place in self._candidates(path):
                if place.is_dir() and next(place.glob(pattern), None) is not None:
                    return place
        raise SFPError(
            f"There is no {' or '.join(paths)} with {pattern} in {self}; give --source the folder "
            "or archive that has it."
        )

    def file(self, path: str) -> Path | None:
        """The file ``path``, found in the same way, or given itself; None where there is none."""
        name = PurePosixPath(path).name
        given = (place for place in self.places if place.is_file() and place.name == name)
        return next((p for p in (*given, *self._candidates(path)) if p.is_file()), None)

    def _candidates(self, path: str) -> Iterator[Path]:
        parts = PurePosixPath(path).parts
        for place in self.places:
            for start in range(len(parts) + 1):
                yield place.joinpath(*parts[start:])

    def __str__(self) -> str:
        return ", ".join(map(str, self.given))


def unpack(archive: Path, folder: Path, needed: Sequence[str]) -> None:
    """Unpack the members that fit a pattern; those that are there with their size are kept.

    Raises:
        SFPError: the archive is broken, or has a member that would leave the folder or is a link.
    """
    sweep(folder)
    try:
        for name, size, read in progress(
            _members(archive), desc=f"unpacking {archive.name}", unit="file"
        ):
            path = PurePosixPath(name)
            drive = ":" in path.parts[0]
            if path.is_absolute() or ".." in path.parts or "\\" in name or drive:
                raise SFPError(
                    f"The archive {archive} has a file {name!r}, which would leave the folder "
                    "it is unpacked to; get a sound copy."
                )
            target = folder / path
            wanted = any(fnmatch.fnmatchcase(f"/{name}", pattern) for pattern in needed)
            if not wanted or (target.is_file() and target.stat().st_size == size):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file, file.open("wb") as writer, read() as reader:
                shutil.copyfileobj(reader, writer)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        raise SFPError(
            f"The archive {archive} can't be unpacked ({error}); fetch it again, or make room on "
            "the disk."
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, size and a function that opens it, for each file of a zip or tar."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(zipped.open, info)
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            if member.isfile():
                yield member.name, member.size, partial(tarred.extractfile, member)
            elif not member.isdir():
                raise SFPError(
                    f"The archive {archive} has a link or device {member.name!r}, which no owner "
                    "ships; get a sound copy."
                )
