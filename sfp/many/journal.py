"""What is done: one file that a run of a million pictures reads in seconds.

Each shard of a run writes a journal of its own and reads all of them. A line has a digest over
itself and over the run's settings, so that a line that was cut, damaged or copied from elsewhere is
dropped and its picture looked at again. Results themselves say what made them, too: a lost journal
costs time, never a picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from sfp.errors import SFPError
from sfp.files import make_folder, only_one, unwritable, whole_file
from sfp.many.items import Item

STATE = ".sfp"  # the folder in that of the results
_HINT = "put that right and give the same command again, which goes on from there"
_PATIENCE = 60.0  # seconds that another run may take to start
Shard = tuple[int, int]  # which, from 1, of how many


class Journal:
    """The pictures that are done with some settings, in a folder of results.

    Args:
        out: the folder of the results.
        settings: what makes a result, plain values as in JSON.
        shard: whose journal is written.

    Attributes:
        was_killed: whether an earlier run may have left unfinished files.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], shard: Shard = (1, 1)):
        self.folder, self.shard = Path(out) / STATE, shard
        text = json.dumps(settings, sort_keys=True, default=repr)
        self._head = f"settings {hashlib.sha256(text.encode()).hexdigest()}\n".encode()
        self._seal = hashlib.blake2b(self._head, digest_size=8)
        self._done: set[bytes] = set()
        self._stems: dict[bytes, str] = {}
        self._file: BinaryIO | None = None
        self.was_killed = True

    def __len__(self) -> int:
        return len(self._done)

    @property
    def path(self) -> Path:
        return self.folder / f"journal-{self.shard[0]}-of-{self.shard[1]}.txt"

    @contextmanager
    def held(self, fresh: bool = False) -> Iterator[Journal]:
        """Hold the shard for this process, and read all journals.

        Journals of other settings are deleted: their results will be made again.

        Args:
            fresh: forget what is done, of every shard.

        Raises:
            SFPError: another process is at work on this shard, or on the folder with other settings
                or another number of shards; or the folder can't be written.
        """
        out, advice = self.folder.parent, "choose another folder with --out"
        missing = not out.exists()
        make_folder(out, advice)
        make_folder(self.folder, advice)
        start = FileLock(self.folder / ".start.lock")
        try:
            with ExitStack() as held:
                with _alone(start, out, advice):  # one run at a time looks at the others
                    holder = self.folder / f"{_lock(*self.shard)}.by"
                    self.was_killed = holder.exists() or not self.path.exists()
                    held.enter_context(only_one(self.folder, "--out", _lock(*self.shard)))
                    self._refuse_others()
                    self._read(fresh)
                    held.callback(self.close)
                    self._file = self._open()
                yield self
        finally:
            if not any(self.folder.glob("[!.]*")) and not any(self.folder.glob(".shard-*")):
                Path(start.lock_file).unlink(missing_ok=True)
            for folder in (self.folder, out) if missing else (self.folder,):
                with contextlib.suppress(OSError):  # something is in it
                    folder.rmdir()

    def _refuse_others(self) -> None:
        """Raises SFPError where a living run has another number of shards or other settings."""
        for file in self.folder.glob(".shard-*-of-*.lock"):
            number, count = map(int, re.findall(r"\d+", file.name))
            if (number, count) == self.shard or not _is_held(file):
                continue
            journal = self.folder / f"journal-{number}-of-{count}.txt"
            other = count != self.shard[1] and f"as one of {count} shards"
            if not other and journal.is_file():
                with journal.open("rb") as lines:
                    other = lines.readline() != self._head and "with other settings"
            if other:
                by = file.with_name(f"{file.name}.by")
                who = by.read_text(errors="replace") if by.is_file() else "Another process"
                raise SFPError(
                    f"{who} is at work in {self.folder.parent} {other}; wait until it has ended, or"
                    " choose another folder with --out."
                )

    def _read(self, fresh: bool) -> None:
        try:
            for file in sorted(self.folder.glob("journal-*-of-*.txt")):
                with file.open("rb") as lines:
                    own = lines.readline() == self._head
                    if own and not fresh:
                        self._read_lines(lines)
                held = file != self.path and _is_held(
                    self.folder / _lock(*map(int, re.findall(r"\d+", file.name)))
                )
                if (not own or fresh) and not held:
                    file.unlink()
        except OSError as error:
            raise unwritable(self.folder, error, _HINT) from error

    def _read_lines(self, lines: Iterator[bytes]) -> None:
        for line in lines:
            proof, _, content = line.rstrip(b"\n").partition(b"\t")
            if proof != self._proof(content):
                continue
            digest, own, _ = content.split(b"\t", 2)
            self._done.add(bytes.fromhex(digest.decode()))
            if own:
                key, stem = json.loads(own)
                self._stems[bytes.fromhex(key)] = stem

    def _proof(self, content: bytes) -> bytes:
        digest = self._seal.copy()
        digest.update(content)
        return digest.hexdigest().encode()

    def has(self, item: Item) -> bool:
        """Whether the picture, with its size and time, is done."""
        return _digest(item.key, item.bytes, item.modified_ns) in self._done

    def stem_of(self, item: Item) -> str:
        """The stem of its results, where it isn't the item's own; else ""."""
        return self._stems.get(_digest(item.key), "") if self._stems else ""

    def add(self, item: Item, stem: str) -> None:
        """Note that a picture is done, its results being on the disk.

        Raises:
            SFPError: it can't be written; what was written before stays good.
        """
        digest = _digest(item.key, item.bytes, item.modified_ns)
        own = "" if stem == item.stem else json.dumps([_digest(item.key).hex(), stem])
        content = "\t".join((digest.hex(), own, json.dumps(item.key))).encode()
        line = self._proof(content) + b"\t" + content + b"\n"
        try:
            while line:  # unbuffered: one write, unless the disk is full
                line = line[self._file.write(line) :]
        except OSError as error:
            raise unwritable(self.path, error, _HINT) from error
        self._done.add(digest)

    def _open(self) -> BinaryIO:
        try:
            if not self.path.is_file():
                with whole_file(self.path, _HINT) as partial:
                    partial.write_bytes(self._head)
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                cut = file.read() != b"\n"
            opened = self.path.open("ab", buffering=0)
            if cut:
                opened.write(b"\n")
        except OSError as error:
            raise unwritable(self.path, error, _HINT) from error
        return opened

    def close(self) -> None:
        """Delete the journal where it says nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if self.path.is_file() and self.path.stat().st_size == len(self._head):
                self.path.unlink()


@contextmanager
def _alone(lock: FileLock, out: Path, advice: str) -> Iterator[None]:
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise SFPError(
            f"Another run has been starting in {out} for over {_PATIENCE:.0f} seconds; end it, or"
            f" {advice}."
        ) from None
    except OSError as error:
        raise unwritable(out, error, advice) from error
    try:
        yield
    finally:
        lock.release()


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(
        "\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=12
    ).digest()


def _lock(number: int, count: int) -> str:
    return f".shard-{number}-of-{count}.lock"


def _is_held(file: Path) -> bool:
    """Whether a living process holds a lock."""
    if not file.exists():
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
