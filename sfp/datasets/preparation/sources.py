"""What a user hands in as the source: folders, single files and archives, which are unpacked first."""

from __future__ import annotations

import fnmatch
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from sfp.errors import SFPError
from sfp.files import sweep, whole_file

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
                    f"The source {path} does not exist; give --source a folder or an archive that does."
                )
            if path.is_file() and path.name.endswith((".zip", *_TAR)):
                folder = unpack_to / f"{number}_{path.name}"
                unpack(path, folder, needed)
                path = folder
            self.places.append(path)

    def folder(self, pattern: str, *paths: str) -> Path:
        """The first of the folders ``paths`` that has files like ``pattern``, from wherever in its path the source starts.

        ``a/b/c`` is looked for as ``a/b/c``, ``b/c``, ``c`` and as the given folder itself.

        Raises:
            SFPError: it is nowhere.
        """
        for path in paths:
            for place in self._candidates(path):
                if place.is_dir() and next(place.glob(pattern), None) is not None:
                    return place
        raise SFPError(
            f"There is no {' or '.join(paths)} with {pattern} in {self}; give --source the folder or archive that has it."
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
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                members = (
                    (m.filename, m.file_size, lambda m=m: file.open(m))
                    for m in file.infolist()
                    if not m.is_dir()
                )
                _unpack_members(archive, folder, needed, members)
        else:
            with tarfile.open(archive) as file:
                _unpack_members(archive, folder, needed, _tar_members(archive, file))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        raise SFPError(
            f"The archive {archive} can't be unpacked ({error}); fetch it again, or make room on the disk."
        ) from error


def _tar_members(
    archive: Path, file: tarfile.TarFile
) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    for member in file:
        if member.isdir():
            continue
        if not member.isfile():
            raise SFPError(
                f"The archive {archive} has a link or device {member.name!r}, which no owner ships; don't use it."
            )
        yield member.name, member.size, lambda m=member: file.extractfile(m)


def _unpack_members(
    archive: Path,
    folder: Path,
    needed: Sequence[str],
    members: Iterator[tuple[str, int, Callable[[], IO[bytes]]]],
) -> None:
    for name, size, opened in tqdm(members, desc=f"unpacking {archive.name}", unit="file"):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0]:
            raise SFPError(
                f"The archive {archive} has a file {name!r}, which would leave the folder it is unpacked to; don't use it."
            )
        if not any(fnmatch.fnmatchcase(f"/{name}", pattern) for pattern in needed):
            continue
        target = folder / path
        if target.is_file() and target.stat().st_size == size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as partial, partial.open("wb") as writer, opened() as reader:
            shutil.copyfileobj(reader, writer)
