"""A limit on frames of the cloud that change nothing, so that no cloud keeps a device waiting for ever."""

from __future__ import annotations

from chaperone_common.errors import ProtocolViolation

MOST_IDLE_FRAMES = 64  # in a row


class Patience:
    """Counts the frames in a row after which nothing has changed.

    The device waits again after each of them. Only a takeover that crosses the Close may have more than a few.
    """

    def __init__(self) -> None:
        self._idle_frames = 0

    def note(self, *, progress: bool, tokens_left: int) -> None:
        """Take the outcome of one frame; raises ProtocolViolation after too many without progress."""
        self._idle_frames = 0 if progress else self._idle_frames + 1
        if self._idle_frames > MOST_IDLE_FRAMES + max(0, tokens_left):
            raise ProtocolViolation(
                f"cloud: {self._idle_frames} frames in a row that change nothing; use another cloud"
            )
