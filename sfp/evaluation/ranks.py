"""Ranks that wait for one another, and notice when one can't come any more."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

BEAT = 5.0  # seconds between signs of life
SILENCE = 60.0  # seconds without one after which a rank counts as dead
MEETING = timedelta(minutes=10)  # that ranks have to find each other, and for any exchange
_LONGEST = timedelta(days=7)  # that one may wait for the slowest's share, while all are alive


def wait_for_all() -> None:
    """Go on as soon as all ranks are here: however long the slowest takes, since ``Watch`` knows
    whether it lives. A rank whose process ended is noticed at once, by its connection.

    Raises:
        RuntimeError: gloo's, where a rank has ended.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.monitored_barrier(timeout=_LONGEST)


class Watch(threading.Thread):
    """Signs of life of this rank, and an end to it where another one gives none for a minute: its
    host is gone, or hangs.

    Args:
        address, port: of rank 0's store.
        give_up: called with the sentence; ends the process if None.
    """

    def __init__(
        self,
        address: str,
        port: int,
        rank: int,
        size: int,
        give_up: Callable[[str], None] | None = None,
    ):
        super().__init__(name="watch ranks", daemon=True)
        self.store = dist.TCPStore(address, port, is_master=False, timeout=MEETING)
        self.rank, self.size, self.give_up = rank, size, give_up or _end
        self.ended, self.answered = threading.Event(), time.monotonic()

    def run(self) -> None:
        threading.Thread(target=self._watch_store, name="watch rank 0", daemon=True).start()
        seen = dict.fromkeys(set(range(self.size)) - {self.rank}, (-1, time.monotonic()))
        while not self.ended.is_set():
            try:
                self.store.add(f"sfp/beats/{self.rank}", 1)
                counts = {other: self.store.add(f"sfp/beats/{other}", 0) for other in seen}
                left = [other for other in seen if self.store.add(f"sfp/left/{other}", 0)]
            except RuntimeError:  # rank 0 has ended, which gloo tells whoever waits for it
                self.ended.set()
                return
            self.answered = now = time.monotonic()
            for other in left:
                del seen[other]
            for other, (count, since) in list(seen.items()):
                if counts[other] != count:
                    seen[other] = counts[other], now
                elif now - since > SILENCE:
                    return self._give_up(other)
            self.ended.wait(BEAT)

    def _watch_store(self) -> None:
        """A host of rank 0 that hangs leaves the other thread waiting for its store."""
        while not self.ended.wait(BEAT):
            if time.monotonic() - self.answered > SILENCE + BEAT:
                return self._give_up(0)

    def _give_up(self, rank: int) -> None:
        self.ended.set()
        self.give_up(
            f"Rank {rank} of {self.size} has given no sign of life for {SILENCE:g} seconds; see"
            " whether its host is well, the same command again goes on from here."
        )

    def leave(self) -> None:
        """Say that this rank is done, so that none waits for its signs."""
        self.ended.set()
        self.join(BEAT)
        try:
            self.store.add(f"sfp/left/{self.rank}", 1)
        except RuntimeError:  # rank 0 has ended
            return


def _end(sentence: str) -> None:
    """End this process, whose main thread may wait in C++ for ever."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(2)
