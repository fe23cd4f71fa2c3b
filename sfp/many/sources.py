"""Where pictures come from: folders, lists, globs, tars of web datasets, videos, Parquet tables.

A source is walked lazily and gives small ``Item`` objects, so that there may be any number; what is
wrong with a part of it comes as an ``SFPError`` in its place, and the walk goes on.
"""

from __future__ import annotations

import functools
import glob
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

from sfp.errors import SFPError
from sfp.many.items import DAMAGE, FileItem, FrameItem, Item, PackedItem, RowItem, TarItem
from sfp.names import PICTURES

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg")
LISTS = (".txt", ".lst", ".list")
TABLE = ".parquet"
_BLOCK = 512  # bytes of a tar
Found = Iterator[Item | SFPError]


class Sources:
    """What was given, in order; can be walked several times.

    Args:
        given: paths of pictures, folders, lists (``.txt``), tars, videos and Parquet tables, globs,
            and "-" for a list on the standard input.
        out: the folder of the results, to which the items' keys are relative.
        every: of a video, each N-th frame.
        is_result: whether a file in a folder was made by this program and is no picture.

    Raises:
        SFPError: nothing is given, or ``every`` is less than 1.
    """

    def __init__(
        self,
        given: Sequence[str | os.PathLike],
        out: str | os.PathLike = ".",
        every: int = 1,
        is_result: Callable[[str], bool] = lambda file: False,
    ):
        self.given, self.every = [os.fspath(each) for each in given], every
        self.out, self.is_result = os.path.realpath(out), is_result
        if not self.given:
            raise SFPError("No pictures are named; give a file, a folder, a list or a glob.")
        if every < 1:
            raise SFPError(f"--every {every} must be at least 1: each frame of a video.")
        self._typed = sys.stdin.read().splitlines() if "-" in self.given else []
        self._key_of = functools.lru_cache(maxsize=256)(self._relative_folder)

    @property
    def one_folder(self) -> bool:
        """Whether all items come from one folder, so that none can come twice."""
        return len(self.given) == 1 and os.path.isdir(self.given[0])

    def __iter__(self) -> Found:
        for given in self.given:
            try:
                yield from self._walk(given)
            except SFPError as error:
                yield error

    def _walk(self, given: str) -> Found:
        if given == "-":
            return self._list(self._typed, ".", "the standard input")
        if os.path.isdir(given):
            return self._folder(given)
        if not os.path.lexists(given) and glob.has_magic(given):
            return self._glob(given)
        if given.lower().endswith(LISTS):
            return self._list(_lines(given), os.path.dirname(given), given)
        return self._file(given, os.path.basename(given))

    def _file(self, file: str, name: str) -> Found:
        """A picture, or the pictures in a file of many."""
        kind = file.lower()
        try:
            if kind.endswith(TARS):
                yield from self._tar(file, name)
            elif kind.endswith(VIDEOS):
                yield from self._video(file, name)
            elif kind.endswith(TABLE):
                yield from self._table(file, name)
            elif not os.path.lexists(file):
                yield SFPError(f"There is no image file or folder {file}; check the path.")
            else:
                yield FileItem(self._key(file), name, file, *_size_and_time(file))
        except SFPError as error:  # the other files go on
            yield error

    def _folder(self, folder: str) -> Found:
        """The pictures in a folder, and then in its subfolders."""
        others: dict[str, int] = {}
        empty = True
        for found in self._below(folder, "", (), others):
            yield found
            empty = False
        if empty:
            kinds = ", ".join(PICTURES)
            hint = "name one that has some"
            if others:
                ending = max(others, key=others.__getitem__)
                hint = f"it has {others[ending]} files {ending}: name those, as {folder}/*{ending}"
            yield SFPError(f"The folder {folder} has no pictures ({kinds}); {hint}.")

    def _below(self, folder: str, inside: str, above: tuple, others: dict[str, int]) -> Found:
        try:
            status = os.stat(folder)
            mark = (status.st_dev, status.st_ino)
            if mark in above:  # a link to a folder that it lies in
                return
            with os.scandir(folder) as entries:
                found = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            yield SFPError(f"The folder {folder} can't be read ({error.strerror}); check it.")
            return
        below, before = [], self._key_of(folder)
        for entry in found:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                below.append(entry.name)
            elif ending in PICTURES:
                if self.is_result(entry.path):
                    continue
                try:
                    details = entry.stat()
                    size, time = details.st_size, details.st_mtime_ns
                except OSError:  # a link to nowhere: reading it will say so
                    size = time = None
                name = entry.name
                yield FileItem(before + name, inside + name, entry.path, size, time)
            elif ending in (".tar", ".tgz", ".gz", TABLE, *VIDEOS):
                others[ending] = others.get(ending, 0) + 1
        for name in below:
            path = os.path.join(folder, name)
            yield from self._below(path, f"{inside}{name}/", (*above, mark), others)

    def _list(self, lines: list[str], folder: str, name: str) -> Found:
        """Paths, relative to the list's folder."""
        paths = [os.path.join(folder, line) for text in lines if (line := text.strip())]
        if not paths:
            yield SFPError(f"The list {name} names no picture; write one path a line.")
            return
        for path, inside in zip(paths, _inside(paths), strict=True):
            for found in self._file(path, inside):
                if isinstance(found, SFPError) and not os.path.lexists(path):
                    found = SFPError(f"There is no file {path}, which {name} lists; check it.")
                yield found

    def _glob(self, pattern: str) -> Found:
        paths = sorted(glob.iglob(pattern, recursive=True))
        paths = [path for path in paths if not os.path.isdir(path)]
        if not paths:
            yield SFPError(f"No file is named as {pattern}; check the pattern.")
            return
        for path, inside in zip(paths, _inside(paths), strict=True):
            ending = os.path.splitext(path)[1].lower()
            if ending in PICTURES and self.is_result(path):
                continue
            yield from self._file(path, inside)

    def _tar(self, file: str, name: str) -> Found:
        """A picture of each sample of a web dataset: members of one key stand together, and the
        first of ``PICTURES`` is taken, "a.jpg" before "a.seg.png".
        """
        about = _size_and_time(file)
        key, stem = self._key(file), _without(name, TARS)
        pictures = 0
        sample: list[tarfile.TarInfo] = []

        def chosen() -> Iterator[Item]:
            ranked = [(rank, n) for n, each in enumerate(sample) if (rank := _rank(each.name))]
            if not ranked:
                return
            member = sample[min(ranked)[1]]
            common = (f"{key}#{member.name}", f"{stem}/{_relative(member.name)}", file, *about)
            if packed:
                yield PackedItem(*common, member=member.name)
            else:
                yield TarItem(*common, offset=member.offset_data, size=member.size)

        try:
            archive, packed = _open_tar(file)
            with archive:
                wrong = ""
                for member in archive:
                    archive.members = []  # it keeps them all
                    if not packed and member.offset_data + member.size > (about[0] or 0):
                        wrong = "its last member is not whole"
                        break
                    if sample and _sample(member.name) != _sample(sample[0].name):
                        for item in chosen():
                            pictures += 1
                            yield item
                        sample = []
                    if member.isfile() and not os.path.basename(member.name).startswith("."):
                        sample.append(member)
                if not packed and not wrong:
                    archive.fileobj.seek(archive.offset)
                    if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
                        wrong = "its end is missing"
        except DAMAGE as error:
            if isinstance(error, FileNotFoundError):
                yield SFPError(f"There is no file {file}; check the path.")
                return
            wrong = str(error) or type(error).__name__
            sample = sample[:-1]  # it may not be whole
        for item in chosen():
            pictures += 1
            yield item
        if wrong:
            yield SFPError(
                f"{file} is cut short or damaged after {pictures} pictures ({wrong}); fetch it"
                " again."
            )
        elif not pictures:
            yield SFPError(f"{file} has no pictures ({', '.join(PICTURES)}); name one that has.")

    def _video(self, file: str, name: str) -> Found:
        from sfp.many.video import frame_times

        about = _size_and_time(file)
        if about[0] is None:
            raise SFPError(f"There is no file {file}; check the path.")
        key, stem = self._key(file), _without(name, VIDEOS)
        for found in frame_times(file, self.every):
            if isinstance(found, SFPError):
                yield found
            else:
                number, time = found
                own = (f"{key}#{number}", f"{stem}/{number:06d}.png", file, *about)
                yield FrameItem(*own, time=time, number=number)

    def _table(self, file: str, name: str) -> Found:
        from sfp.many.table import rows

        about = _size_and_time(file)
        if about[0] is None:
            raise SFPError(f"There is no file {file}; check the path.")
        key, stem = self._key(file), _without(name, (TABLE,))
        empty = True
        for number, (column, group, row, named, path) in enumerate(rows(file)):
            empty = False
            if not column:
                yield from self._file(
                    os.path.join(os.path.dirname(file), path), f"{stem}/{_relative(path)}"
                )
                continue
            named = _relative(named) if named else f"{number:09d}"
            if os.path.splitext(named)[1].lower() not in PICTURES:
                named = f"{named}.png"
            own = (f"{key}#{number}", f"{stem}/{named}", file, *about)
            yield RowItem(*own, column=column, group=group, row=row)
        if empty:
            yield SFPError(f"{file} has no rows; name a table that has.")

    def _key(self, file: str) -> str:
        return f"{self._key_of(os.path.dirname(file))}{os.path.basename(file)}"

    def _relative_folder(self, folder: str) -> str:
        """A folder relative to that of the results, with a slash at its end."""
        found = os.path.relpath(os.path.realpath(folder or "."), self.out)
        return "" if found == "." else f"{PurePath(found).as_posix()}/"


def _size_and_time(file: str) -> tuple[int | None, int | None]:
    try:
        details = os.stat(file)
    except OSError:  # reading it will say so
        return None, None
    return details.st_size, details.st_mtime_ns


def _lines(file: str) -> list[str]:
    try:
        with open(file, encoding="utf-8") as lines:
            return lines.read().splitlines()
    except UnicodeDecodeError as error:
        raise SFPError(
            f"{file} is no list in UTF-8 ({error.reason}); write one path a line."
        ) from (error)
    except FileNotFoundError as error:
        raise SFPError(f"There is no list {file}; check the path.") from error


def _inside(paths: list[str]) -> list[str]:
    """The paths relative to the deepest folder that holds them all."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    common = os.path.commonpath(folders)
    return [PurePath(os.path.relpath(path, common)).as_posix() for path in paths]


def _relative(path: str) -> str:
    """A path out of a file, made to lie below any folder."""
    parts = [part for part in PurePath(path.replace("\\", "/")).parts if part not in ("..", "/")]
    return "/".join(parts) or "picture"


def _without(name: str, endings: Sequence[str]) -> str:
    ending = max((e for e in endings if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)]


def _open_tar(file: str) -> tuple[tarfile.TarFile, bool]:
    """The archive, and whether it is packed."""
    try:
        return tarfile.open(file, "r:"), False
    except tarfile.ReadError:
        return tarfile.open(file, "r|*"), True


def _sample(member: str) -> str:
    """A web dataset's key: the name up to the first dot."""
    folder, _, name = member.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}"


def _rank(member: str) -> int:
    """How much a member is a sample's picture, from 1; 0 where it is none."""
    name = member.rpartition("/")[2].lower()
    whole = f".{name.partition('.')[2]}"
    last = os.path.splitext(name)[1]
    if whole in PICTURES:
        return 1 + PICTURES.index(whole)
    return 1 + len(PICTURES) + PICTURES.index(last) if last in PICTURES else 0
