"""The journal of one client: entries in the order of their texts, and their file within its bounds."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chaperone_common.errors import ConfigError
from chaperone_common.types import Promises
from edge_client.engine.unaudited import UnauditedText
from edge_client.journal.entry import JournalEntry, Removal, decode, encode
from edge_client.journal.file import JournalFile

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JournalState:
    """The journal of a client: its texts that wait now, and counts since the client was made."""

    waiting: int = 0  # texts that no audit has reached
    audited: int = 0  # texts that the cloud has read since
    dropped: int = 0  # texts that will never be audited: no room, another model or tokenizer, an unreadable line
    audited_tokens: int = 0  # tokens of the audited texts that had been unread
    deviations: int = 0  # those that the cloud would have chosen otherwise; unverified tokens count, too


class Journal:
    """Texts that wait for their audit, on the disk and in memory.

    `add`, `settle` and `drop` return at once: a thread of the journal's own writes the file. If that fails, a warning
    says so once, and the texts wait in memory. No log holds any of a text.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """Read the entries of an earlier client; raises ConfigError."""
        self._path = path
        self._limit = limit_bytes
        self._waiting: dict[str, bytes] = {}  # lines by id, oldest first
        self._live_bytes = 0
        self._file_bytes = 0
        self._audited = self._dropped = self._audited_tokens = self._deviations = 0
        self._gone: set[str] = set()  # ids settled by this client; the file may still hold them if it cannot be written
        self._left = 0  # texts in the closed file
        self._warned: set[str] = set()
        self._file: JournalFile | None = None
        self._writer: ThreadPoolExecutor | None = None
        self.open()

    @property
    def state(self) -> JournalState:
        """The counts."""
        return JournalState(
            len(self._waiting) + self._left, self._audited, self._dropped, self._audited_tokens, self._deviations
        )

    @property
    def is_open(self) -> bool:
        """True if the file is locked and in use."""
        return self._file is not None

    def open(self) -> None:
        """Lock and read the file, unless it is open; raises ConfigError."""
        if self._file is not None:
            return
        file = JournalFile(self._path)
        try:
            lines = file.read()
        except ConfigError:
            file.close()
            raise
        self._file = file
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="chaperone-journal")
        self._left = 0
        self._load(lines)
        self._make_room(0)
        if self._live_bytes != sum(map(len, lines)):
            self._replace()
        self._file_bytes = self._live_bytes

    def entries(self) -> list[JournalEntry]:
        """Return all entries, oldest first."""
        return [self._decoded(line) for line in self._waiting.values()]

    def oldest(self) -> JournalEntry | None:
        """Return the entry that has waited the longest."""
        line = next(iter(self._waiting.values()), None)
        return None if line is None else self._decoded(line)

    def add(self, text: UnauditedText, promises: Promises) -> tuple[JournalEntry | None, list[str]]:
        """Add a text, and return its entry and the ids of older ones that gave way; None if it is too large."""
        entry = JournalEntry(uuid.uuid4().hex, text, promises)
        line = encode(entry)
        if len(line) > self._limit:
            self._drop_for_room(1)
            return None, []
        dropped = self._make_room(len(line))
        self._hold(entry.id, line)
        self._write(line)
        return entry, dropped

    def settle(self, entry: JournalEntry, *, deviations: int) -> bool:
        """Count an audit and remove its entry; return False, and count nothing, if the entry is gone."""
        if not self._remove(entry.id):
            return False
        self._audited += 1
        self._audited_tokens += entry.text.end - entry.text.start
        self._deviations += deviations
        return True

    def drop(self, entry: JournalEntry, reason: str) -> None:
        """Remove an entry that cannot be audited. A log says each `reason` once, without the text."""
        if self._remove(entry.id):
            self._dropped += 1
            self._warn(reason, f"a text is not audited: {reason}")

    def close(self) -> None:
        """Write what is to be written, and release the file. Blocks; idempotent."""
        file, writer, self._file, self._writer = self._file, self._writer, None, None
        if writer is not None:
            writer.shutdown()
        if file is not None:
            file.close()
            if not file.is_damaged:  # another process may audit them now
                self._left = len(self._waiting)
                self._waiting.clear()
                self._live_bytes = 0

    def _load(self, lines: list[bytes]) -> None:
        """Hold the entries of these lines that were not removed."""
        for number, line in enumerate(lines, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("half a line")
                read = decode(line)
            except ValueError:
                if number < len(lines):  # the last line was being written when its process was killed
                    self._dropped += 1
                    self._warn("unreadable", "a line cannot be read, and its text is not audited")
                continue
            match read:
                case Removal(entry_id):
                    removed = self._waiting.pop(entry_id, b"")
                    self._live_bytes -= len(removed)
                case JournalEntry():
                    if read.id not in self._gone:
                        self._hold(read.id, line)

    def _hold(self, entry_id: str, line: bytes) -> None:
        self._live_bytes += len(line) - len(self._waiting.get(entry_id, b""))
        self._waiting[entry_id] = line

    def _make_room(self, added: int) -> list[str]:
        """Drop the oldest entries until `added` bytes fit, and return their ids.

        An eighth of the file is free then, so that not every text rewrites it.
        """
        dropped = []
        most = self._limit - added
        while self._waiting and self._live_bytes > most:
            most = min(most, self._limit * 7 // 8 - added)
            entry_id, line = next(iter(self._waiting.items()))
            del self._waiting[entry_id]
            self._live_bytes -= len(line)
            dropped.append(entry_id)
        if dropped:
            self._drop_for_room(len(dropped))
            self._replace()
        return dropped

    def _drop_for_room(self, count: int) -> None:
        self._dropped += count
        self._warn("full", "it is full, and the oldest texts are not audited; raise gate.journal_mib to keep more")

    def _remove(self, entry_id: str) -> bool:
        line = self._waiting.pop(entry_id, None)
        if line is None:
            return False
        self._live_bytes -= len(line)
        self._gone.add(entry_id)
        if not self._waiting or self._file_bytes > 2 * self._live_bytes:
            self._replace()  # no text stays for long in a file that needs it no more
        else:
            self._write(encode(Removal(entry_id)))
        return True

    def _write(self, line: bytes) -> None:
        """Append a line, if the file is open and has room for it."""
        if self._file is not None and (self._file.is_damaged or self._file_bytes + len(line) > self._limit):
            self._replace()
        elif self._file is not None:
            self._file_bytes += len(line)
            self._submit(self._file.append, line)

    def _replace(self) -> None:
        if self._file is not None:
            self._file_bytes = self._live_bytes
            self._submit(self._file.replace, [*self._waiting.values()])

    def _submit(self, write: Callable[..., None], *arguments: object) -> None:
        assert self._writer is not None, "the file is open"
        self._writer.submit(write, *arguments).add_done_callback(self._written)

    def _written(self, written: Future[None]) -> None:
        if (error := written.exception()) is not None:
            self._warn("unwritable", f"{error}; texts wait in memory")

    def _warn(self, kind: str, message: str) -> None:
        """Log a warning, once for each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            _LOG.warning("gate.journal_file: %s", message)

    @staticmethod
    def _decoded(line: bytes) -> JournalEntry:
        entry = decode(line)
        assert isinstance(entry, JournalEntry), "only entries wait"
        return entry
