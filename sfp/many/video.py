"""Frames of a video, by PyAV (the extra ``video``)."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from sfp.errors import SFPError

_AHEAD = 5.0  # seconds to a frame that are decoded rather than jumped over


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise SFPError(
            f"Videos are read by PyAV, which can't be imported ({error}); pip install av."
        ) from error
    return av


def _open(file: str) -> tuple[Any, Any]:
    """The container and its first video stream.

    Raises:
        SFPError: no such file, no video, or PyAV is not installed.
    """
    av = _av()
    try:
        container = av.open(file)
    except (av.error.FFmpegError, OSError) as error:
        raise SFPError(
            f"{file} can't be read as a video ({error.strerror}); give a whole file."
        ) from error
    if not container.streams.video:
        container.close()
        raise SFPError(f"{file} has no pictures, only sound; give a video.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return container, stream


def frame_times(file: str, every: int = 1) -> Iterator[tuple[int, int] | SFPError]:
    """Number and presentation time of every N-th frame; what is wrong with the file comes last.

    Nothing is decoded: the frames' times stand in the container.

    Raises:
        SFPError: it is no video.
    """
    av = _av()
    container, stream = _open(file)
    times, wrong = [], ""
    with container:
        announced = stream.frames
        try:
            for packet in container.demux(stream):
                if packet.pts is not None and not packet.is_discard:
                    times.append(packet.pts)
        except (av.error.FFmpegError, OSError) as error:
            wrong = error.strerror or str(error)
    times.sort()
    for number in range(0, len(times), every):
        yield number, times[number]
    if not wrong and len(times) < announced:
        wrong = f"it announces {announced} frames"
    if wrong or not times:
        yield SFPError(
            f"{file} is cut short or damaged after {len(times)} frames"
            f" ({wrong or 'it has none'}); fetch it again."
        )


class VideoReader:
    """Decodes frames in the order of the video; goes back where an earlier one is asked for."""

    def __init__(self, file: str):
        self.file = file
        self.container, self.stream = _open(file)
        self.frames = self._decode()
        self.last: int | None = None

    def read(self, time: int, number: int) -> np.ndarray:
        """The frame of that presentation time, (H, W, 3) uint8 RGB, upright.

        Raises:
            SFPError: it can't be decoded.
        """
        if self.last is None or not 0 < (time - self.last) * self.stream.time_base < _AHEAD:
            self.container.seek(time, stream=self.stream)
            self.frames = self._decode()
        for frame in self.frames:
            self.last = frame.pts
            if frame.pts >= time:
                break
        else:
            frame = None
        if frame is None or frame.pts != time:
            raise SFPError(
                f"Frame {number} of {self.file} can't be decoded; the video is damaged there."
            )
        pixels = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    def _decode(self) -> Iterator[Any]:
        """Frames from here on; a packet that can't be decoded gives none."""
        av = _av()
        for packet in self.container.demux(self.stream):
            try:
                yield from (frame for frame in packet.decode() if frame.pts is not None)
            except av.error.InvalidDataError:
                continue
