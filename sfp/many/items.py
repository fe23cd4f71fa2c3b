"""One picture of a source: small enough to be sent to another process, read where it is needed."""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sfp.errors import SFPError

if TYPE_CHECKING:
    import numpy as np

DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError)  # what broken archives raise


@dataclass(frozen=True, slots=True)
class Item:
    """A picture. It is a ``StoredImage``: ``Segmenter.many`` takes it.

    Attributes:
        key: tells it from all others: its file relative to the folder of the results, and its place
            there.
        name: its file for other tools, relative to its source; without the ending it is the stem of
            its results.
        file: what holds it.
        bytes, modified_ns: size and time of ``file``, None where there is none.
    """

    key: str
    name: str
    file: str
    bytes: int | None = None
    modified_ns: int | None = None

    path: ClassVar[str] = ""

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"{self.name} in {self.file}"

    @property
    def source(self) -> dict[str, Any]:
        """What tells its file from another or a changed one; stands in the results."""
        return {
            "path": self.key,
            "name": self.name,
            "bytes": self.bytes,
            "modified_ns": self.modified_ns,
        }

    @property
    def place(self) -> str:
        """What shares out pictures: those of one place go to one shard."""
        return self.key

    @property
    def lane(self) -> str:
        """Pictures of one lane are read one after the other, in their order; "" for any order."""
        return ""

    def read_pixels(self) -> np.ndarray:
        """The picture, (H, W, 3) uint8 RGB.

        Raises:
            SFPError: it can't be read.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FileItem(Item):
    """A file of its own."""

    @property
    def path(self) -> str:
        return self.file

    @property
    def title(self) -> str:
        return self.file

    def read_pixels(self) -> np.ndarray:
        from sfp.images import read_image

        return read_image(self.file)


@dataclass(frozen=True, slots=True)
class TarItem(Item):
    """A member of a tar that isn't packed: its bytes lie one after the other."""

    offset: int = 0
    size: int = 0

    def read_pixels(self) -> np.ndarray:
        from sfp.images import decode_image

        try:
            with open(self.file, "rb") as archive:
                archive.seek(self.offset)
                data = archive.read(self.size)
        except OSError as error:
            raise SFPError(
                f"{self.file} can't be read ({error.strerror}); check the path."
            ) from error
        return decode_image(data, self.title)


@dataclass(frozen=True, slots=True)
class PackedItem(Item):
    """A member of a packed tar (.tar.gz ...), which can only be read from its beginning."""

    member: str = ""

    @property
    def lane(self) -> str:
        return self.file

    def read_pixels(self) -> np.ndarray:
        from sfp.images import decode_image

        data = _in_lane(self, _PackedTar, lambda archive: archive.read(self.member))
        return decode_image(data, self.title)


class _PackedTar:
    """Reads members in the order of the archive; one that lies further back from the beginning."""

    def __init__(self, file: str):
        self.file, self.archive = file, None

    def read(self, name: str) -> bytes:
        for _ in range(2 if self.archive else 1):
            self.archive = self.archive or tarfile.open(self.file, "r|*")  # noqa: SIM115
            try:
                for member in self.archive:
                    self.archive.members = []  # it keeps them all
                    if member.name == name:
                        return self.archive.extractfile(member).read()
            except DAMAGE as error:
                self.archive = None
                raise SFPError(
                    f"{self.file} is cut short or damaged ({error}) before {name}; fetch it again."
                ) from error
            self.archive = None
        raise SFPError(f"{self.file} has no {name} any more; was it changed?")


@dataclass(frozen=True, slots=True)
class FrameItem(Item):
    """A frame of a video.

    Attributes:
        time: the frame's presentation time, in the stream's own unit.
        number: of the frame, from 0.
    """

    time: int = 0
    number: int = 0

    @property
    def place(self) -> str:
        return f"{self.key.rpartition('#')[0]}#{self.number // 512}"  # neighbours stay together

    @property
    def lane(self) -> str:
        return self.file

    def read_pixels(self) -> np.ndarray:
        from sfp.many.video import VideoReader

        return _in_lane(self, VideoReader, lambda video: video.read(self.time, self.number))


@dataclass(frozen=True, slots=True)
class RowItem(Item):
    """A picture's file in a row of a Parquet table."""

    column: str = ""
    group: int = 0
    row: int = 0

    @property
    def lane(self) -> str:
        return self.file

    def read_pixels(self) -> np.ndarray:
        from sfp.images import decode_image
        from sfp.many.table import TableReader

        data = _in_lane(self, TableReader, lambda t: t.read(self.column, self.group, self.row))
        return decode_image(data, f"{self.column} in row {self.row} of {self.file}")


_LOCK = threading.Lock()
_OPEN: dict[tuple[str, int | None], Any] = {}  # the one file that lanes read at the moment


def _in_lane(item: Item, reader: Callable[[str], Any], read: Callable[[Any], Any]) -> Any:
    """``read`` of the open reader of the item's file, which goes on where the last item ended."""
    with _LOCK:
        key = (item.file, item.modified_ns)
        if key not in _OPEN:
            _OPEN.clear()
            _OPEN[key] = reader(item.file)
        try:
            return read(_OPEN[key])
        except BaseException:
            _OPEN.clear()
            raise
