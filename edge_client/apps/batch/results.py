"""The results of a batch, with those of an earlier run.

Results are appended to a file, a whole line at a time. At the end the file is put in the order of the input.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from chaperone_common.command.console import Console, ReaderGone
from chaperone_common.errors import InvalidRequest, OutputLost
from chaperone_common.files import replace_file
from edge_client.apps.batch.prompt_file import STANDARD

_BEGINNING = b'{"id": '  # of each line that is written here


class Results(Protocol):
    """Takes one JSON object for each line of the input."""

    def kept(self, line_id: Any, prompt: Sequence[int]) -> bool:
        """Return whether an earlier run finished this line; raises InvalidRequest if it had another prompt."""
        ...

    def keep(self, line_id: Any) -> None:
        """Take the earlier result for the next line."""
        ...

    def add(self, result: dict[str, Any]) -> None:
        """Write the result of the next line; raises OutputLost."""
        ...

    def complete(self) -> None:
        """Finish the file after the last result; raises OutputLost."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_results(name: str, console: Console, prompts: os.stat_result, *, overwrite: bool) -> Results:
    """Open what `--out` names: standard output, a file, or a pipe or device; nothing is written yet.

    Raises InvalidRequest for a place that cannot be written, and for the file that `--prompts` reads.
    """
    try:
        status = None if name == STANDARD else Path(name).stat()
    except OSError:
        status = None  # it does not exist, or opening it will report why
    if name == STANDARD or (status is not None and console.out.samestat(status)):
        console.out.check()
        return StandardOutput(console)
    if status is not None and stat.S_ISREG(status.st_mode) and os.path.samestat(status, prompts):
        raise InvalidRequest(f"--out: {name} is the file that --prompts reads; name another one")
    flags = os.O_RDWR if status is None or stat.S_ISREG(status.st_mode) else os.O_WRONLY
    try:
        descriptor = os.open(name, flags | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InvalidRequest(f"--out: {name}: {error.strerror or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return Device(name, descriptor)
    try:
        return ResultFile(name, descriptor, overwrite=overwrite)
    except BaseException:
        os.close(descriptor)
        raise


class _Stream:
    """A place that keeps no results of an earlier run."""

    def kept(self, line_id: Any, prompt: Sequence[int]) -> bool:
        return False

    def keep(self, line_id: Any) -> None:
        pass

    def complete(self) -> None:
        pass

    def close(self) -> None:
        pass


class StandardOutput(_Stream):
    """Implements `Results` on standard output."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def add(self, result: dict[str, Any]) -> None:
        self._console.result(result)


class Device(_Stream):
    """Implements `Results` on a named pipe or a device."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor

    def add(self, result: dict[str, Any]) -> None:
        try:
            _write(self._descriptor, encoded(result))
        except BrokenPipeError:
            raise ReaderGone(f"--out: {self._name}: nobody reads it") from None
        except OSError as error:
            raise _lost(self._name, error) from None

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class _Record:
    """A line of the file; `prompt` is a hash of the prompt of a finished result."""

    start: int
    size: int
    prompt: int | None = None


class ResultFile:
    """Implements `Results` on a file, which may hold results of an earlier run.

    A new result replaces one with an `error`. Half a line at the end, as a killed run leaves it, is dropped. Raises
    InvalidRequest for a file with any other content, or one that another run is writing.
    """

    def __init__(self, name: str, descriptor: int, *, overwrite: bool) -> None:
        self._name = name
        self._descriptor = descriptor
        self._cut_to = 0 if overwrite else None  # before the first result is written
        self._ends_line = True  # False if the last kept line has no line feed
        self._order: list[_Record] = []  # of this run's lines
        self._records: dict[str, _Record] = {}  # of an earlier run, by id; a finished result wins
        self._written: list[_Record] = []  # all lines in the order of the file
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(f"--out: {name}: another run is writing it; wait, or name another file") from None
        except OSError:
            pass  # a file system without locks
        self._end = 0 if overwrite else self._read()

    def kept(self, line_id: Any, prompt: Sequence[int]) -> bool:
        record = self._records.get(key_of(line_id))
        if record is None or record.prompt is None:
            return False
        if record.prompt != hash(tuple(prompt)):
            shown = json.dumps(line_id, ensure_ascii=False)
            raise InvalidRequest(
                f"id: {shown} has a result of another prompt or model in {self._name}; give the line another id, name "
                "another file, or give --overwrite"
            )
        return True

    def keep(self, line_id: Any) -> None:
        self._order.append(self._records.pop(key_of(line_id)))

    def add(self, result: dict[str, Any]) -> None:
        self._begin()
        line = encoded(result)
        record = _Record(self._end, len(line))
        try:
            _write(self._descriptor, line)
        except OSError as error:
            self._cut(self._end)  # whole lines only
            raise _lost(self._name, error) from None
        self._end += len(line)
        self._order.append(record)
        self._written.append(record)
        earlier = self._records.get(key_of(result["id"]))
        if earlier is not None and earlier.prompt is None:
            del self._records[key_of(result["id"])]  # an error is replaced

    def complete(self) -> None:
        """Put the lines in order: those that this input does not name first, then as the input names them."""
        self._begin()
        wanted = [*self._records.values(), *self._order]
        if wanted != self._written:
            _put_in_order(self._name, self._blocks(wanted))

    def close(self) -> None:
        os.close(self._descriptor)

    def _blocks(self, records: list[_Record]) -> Iterator[bytes]:
        for record in records:
            yield os.pread(self._descriptor, record.size, record.start)

    def _read(self) -> int:
        """Note the results in the file; return the offset for the next one."""
        start, line = 0, b"\n"
        with Path(self._name).open("rb") as file:
            for number, line in enumerate(file, start=1):
                result = _result(line)
                if result is not None:
                    self._note(result, _Record(start, len(line.removesuffix(b"\n")) + 1, _prompt(result)))
                elif not line.endswith(b"\n") and _is_half(line):
                    self._cut_to = start
                    return start
                elif line.strip():
                    raise InvalidRequest(
                        f"--out: {self._name}: line {number} is no result of an earlier run; name another file, or "
                        "give --overwrite to lose this one"
                    )
                start += len(line)
        self._ends_line = line.endswith(b"\n")
        return start if self._ends_line else start + 1

    def _note(self, result: dict[str, Any], record: _Record) -> None:
        self._written.append(record)
        if result["id"] is None:
            return  # of a line that could not be read; this run reads it again
        key = key_of(result["id"])
        if key not in self._records or self._records[key].prompt is None or record.prompt is not None:
            self._records[key] = record

    def _begin(self) -> None:
        """Drop half a line, and end the last line, before the first result is written."""
        if self._cut_to is not None:
            self._cut(self._cut_to)
            self._cut_to = None
        if not self._ends_line:
            try:
                _write(self._descriptor, b"\n")
            except OSError as error:
                raise _lost(self._name, error) from None
            self._ends_line = True

    def _cut(self, size: int) -> None:
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise _lost(self._name, error) from None


def encoded(result: dict[str, Any]) -> bytes:
    """Return a result as one line of JSON."""
    return json.dumps(result, ensure_ascii=False).encode() + b"\n"


def key_of(line_id: Any) -> str:
    """Return a key for an id, which may be any JSON value."""
    return json.dumps(line_id, sort_keys=True)


def _put_in_order(name: str, blocks: Iterator[bytes]) -> None:
    """Replace the file by these lines."""
    try:
        replace_file(Path(name), blocks)
    except OutputLost as error:
        raise OutputLost(f"--out: {error.message}; all results are there, in the order in which they came") from None


def _result(line: bytes) -> dict[str, Any] | None:
    """Return a result of `chaperone generate`, or None for another line."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or "id" not in result:
        return None
    prompt = result.get("prompt_token_ids")
    is_finished = isinstance(prompt, list) and all(isinstance(token_id, int) for token_id in prompt)
    return result if "error" in result or is_finished else None


def _prompt(result: dict[str, Any]) -> int | None:
    """Return the hash of the prompt of a finished result."""
    return None if "error" in result else hash(tuple(result["prompt_token_ids"]))


def _is_half(line: bytes) -> bool:
    """Return whether a last line without its line feed is part of a result. Whole JSON belongs to the user."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith(_BEGINNING) or _BEGINNING.startswith(line) or not line.strip(b"\0")
    return False


def _write(descriptor: int, line: bytes) -> None:
    """Write the whole line; a full disk accepts a part, and fails with the rest."""
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _lost(name: str, error: OSError) -> OutputLost:
    return OutputLost(f"--out: {name}: {error.strerror or error}; what is finished stays, run it again to go on")
