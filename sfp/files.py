"""Writing files whole or not at all, folders that one process at a time may write to, and where the
configs lie.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sfp.errors import SFPError, unknown_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WITHIN = Path(__file__).with_name("configs")  # in a wheel
CONFIGS = _WITHIN if _WITHIN.is_dir() else _WITHIN.parents[1] / "configs"  # in the repository
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room on the disk"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "make its folder first, or choose another"),
}
_DYING = 10.0  # seconds that a killed process's children may keep its lock


def find_config(given: str | Path) -> Path:
    """The config that a path names, or the name of a dataset, such as "toyland".

    Raises:
        SFPError: there is none; the closest is offered.
    """
    path, shipped = Path(given), sorted(CONFIGS.glob("cfg_*.py"))
    if path.is_file():
        return path
    names = {config.stem.removeprefix("cfg_"): config for config in shipped}
    if str(given) in names:
        return names[str(given)]
    if len(path.parts) == 1 and not path.suffix:
        raise unknown_choice("config file or dataset", str(given), names)
    own = sorted(path.parent.glob("cfg_*.py")) if path.parent.is_dir() else []
    raise unknown_choice("config file", str(given), [str(each) for each in own or shipped])


@contextmanager
def whole_file(path: Path, advice: str | None = None) -> Iterator[Path]:
    """A path beside ``path`` to write to, renamed to it when the block ends well, else deleted.

    Its name is hidden and unique, with ``.partial`` before the ending. ``sweep`` finds what a
    killed process leaves.

    Args:
        advice: what to do where it can't be written, for the error.

    Raises:
        SFPError: the file can't be written. Other exceptions of the block pass through.
    """
    mark = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.stem[:40]}.{mark}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to raise
            partial.unlink()
        if (
            isinstance(error, OSError)
            and error.errno
            and error.filename in (None, str(partial), partial)
        ):
            raise unwritable(path, error, advice) from error
        raise


def unwritable(path: Path, error: OSError, advice: str | None = None) -> SFPError:
    """The error for a file or folder that can't be written, with the reason and what to do."""
    advice = advice or _ADVICE.get(error.errno, "choose a folder that can be written")
    return SFPError(f"{path} can't be written ({error.strerror or error}); {advice}.")


def make_folder(path: Path, advice: str | None = None) -> Path:
    """The folder, made with its parents where it is missing.

    Raises:
        SFPError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, advice) from error
    return path


def file_digest(path: Path, kind: str) -> str:
    """The hexadecimal digest of a file of any size; ``kind`` is a name of ``hashlib``'s."""
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read once until its time or size changes: weights are asked again."""
    status = path.stat()
    return _digest_of(path.resolve(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _digest_of(path: Path, changed: int, size: int) -> str:
    return file_digest(path, "sha256")


def sweep(folder: Path) -> None:
    """Delete what this machine's killed processes left unfinished below a folder."""
    here = re.escape(socket.gethostname())
    for path in folder.rglob(".*.partial*"):
        found = re.fullmatch(rf"\..*\.{here}-(\d+)-[0-9a-f]{{8}}\.partial(\..*)?", path.name)
        if found and not _is_alive(int(found[1])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; True where that is unknown."""
    try:
        if os.name == "posix":  # elsewhere signal 0 is no question
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


@contextmanager
def only_one(folder: Path, option: str, name: str = ".lock") -> Iterator[None]:
    """Hold a folder, made if missing, for this process alone until the block or the process ends.

    The file ``<name>.by`` names the holder. On a file system without locks, such as some network
    mounts, ``filelock`` falls back, with a warning, to a file that a killed process leaves behind.

    Args:
        option: the command line's option that names the folder, for the error.

    Raises:
        SFPError: another process holds it, or it can't be written.
    """
    advice = f"choose another folder with {option}"
    missing = not folder.exists()
    make_folder(folder, advice)
    lock, holder = FileLock(folder / name), folder / f"{name}.by"

    def named() -> str:
        return holder.read_text(errors="replace") if holder.is_file() else ""

    try:
        dead = re.fullmatch(rf"process (\d+) on {re.escape(socket.gethostname())}", named())
        lock.acquire(timeout=_DYING if dead and not _is_alive(int(dead[1])) else 0)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except Timeout:
        raise SFPError(
            f"{named() or 'Another process'} is at work in {folder}; "
            f"wait until it has ended, or {advice}."
        ) from None
    except OSError as error:
        lock.release()
        raise unwritable(folder, error, advice) from error
    try:
        yield
    finally:
        for path in (holder, folder / name):  # still held: nobody else is in between
            path.unlink(missing_ok=True)
        lock.release()
        if missing:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


def save_figure(figure: Figure, path: Path, option: str, dpi: int = 110) -> None:
    """Write a matplotlib figure whole, in the format that the path's ending names.

    Args:
        option: the command line's option that gave the path, for the error.

    Raises:
        SFPError: an ending that matplotlib doesn't write, or the file can't be written.
    """
    try:
        with whole_file(path) as partial:
            figure.savefig(partial, dpi=dpi)
    except SFPError:
        raise
    except ValueError as error:
        raise SFPError(
            f"{path} can't be drawn ({error}); give {option} a file such as {path.stem}.png."
        ) from error
