"""The end of one generation for the cloud: the Close with the tokens that it has not read, and their audit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random

from chaperone_common.errors import ChaperoneError, PrefixNotFound
from chaperone_common.frames import Close
from chaperone_common.session import DeviceSession, SessionEvent, State
from edge_client.engine.followers import Followers
from edge_client.engine.settings import EngineSettings
from edge_client.engine.streams import Streams
from edge_client.engine.unaudited import UnauditedText, unaudited_text
from edge_client.gate import GateUntilClosed
from edge_client.link.connection import Connection


class Closing:
    """Sends the Close, and takes the answer to it."""

    def __init__(
        self,
        session: DeviceSession,
        cloud: Connection,
        streams: Streams,
        followers: Followers,
        gate: GateUntilClosed,
        settings: EngineSettings,
        random: Random,
    ) -> None:
        """Prepare for the end; `random` draws whether a text that never asked the cloud is audited."""
        self._session = session
        self._cloud = cloud
        self._streams = streams
        self._followers = followers
        self._gate = gate
        self._settings = settings
        self._random = random
        self._frame: Close | None = None  # once it is sent
        self._weight = 1.0  # texts that this one stands for, if its audit was drawn by lot

    @property
    def text(self) -> Sequence[int]:
        """The text up to the last token of the Close; empty before it was sent."""
        return () if self._frame is None else self._session.text[: _end(self._frame)]

    def send(self) -> None:
        """Send the Close of a complete text, with its unread tokens if the settings ask for their audit."""
        share = self._settings.closing_share(self._session, self._random.random())
        if not share:
            self._gate.close()  # no audit comes: the audited texts stand for these tokens
        self._weight = 1.0 / (share or 1.0)
        self._send(self._session.close(audit_share=share))

    def send_early(self) -> None:
        """Send the Close of a text that its user leaves, with all unread tokens."""
        self._send(self._session.close())

    def leave(self) -> None:
        """Send the Close of a prompt, and go on without the cloud. The stream ends by itself."""
        self._frame = Close(self._session.prompt_length, ())
        self._cloud.send(self._frame)
        self._cloud.part()

    async def audit(self, wait: Callable[[], Awaitable[None]]) -> list[SessionEvent]:
        """Take the answer to the Close, if one is to come, and return its events; `wait` waits for a frame."""
        events: list[SessionEvent] = []
        try:
            while self._session.state is State.CLOSING:
                try:
                    for frame, _ in self._cloud.ready():
                        self._cloud.on_frame(idle=False)
                        events += self._followers.observe(self._session.apply(frame))
                    if self._session.state is State.CLOSING:
                        await wait()
                except PrefixNotFound as error:  # the text was short, and ended before the cloud answered its Open
                    await self._streams.open_in_full(error)
                    self._send(self._session.close(audit_share=1.0 / self._weight))
        except ChaperoneError:  # the text is complete without the audit; `deviation_bound` counts unread tokens
            self._cloud.cancel()
        finally:
            self._gate.close()
        return events

    def unaudited(self) -> UnauditedText | None:
        """Return the final tokens that no audit of this stream has reached; see `Engine.unaudited`."""
        session, frame = self._session, self._frame
        if session.closed:
            return None
        if frame is None:
            share = self._settings.closing_share(session, self._random.random())
            start, end = session.read_length, session.final_length if share else 0
            self._weight = 1.0 / (share or 1.0)
        else:
            start, end = frame.start, _end(frame)
        return unaudited_text(session, start, end, self._weight) if start < end else None

    def _send(self, frame: Close) -> None:
        self._frame = frame
        self._cloud.send(frame)
        self._cloud.close()


def _end(frame: Close) -> int:
    """Return the position after the last token of a Close."""
    return frame.start + len(frame.token_ids)
