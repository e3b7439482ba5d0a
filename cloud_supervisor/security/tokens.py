"""The tokens file: which secrets name which tenant.

A token is `chp_<id>_<secret>`. The file holds the id and a hash of the secret: a copy of the file opens nothing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from chaperone_common.errors import ConfigError
from chaperone_common.files import replace_file
from chaperone_common.settings import FrozenModel
from cloud_supervisor.caller import check_tenant

_LOG = logging.getLogger(__name__)

PREFIX = "chp_"
_ID_LENGTH = 12
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_SECRET_BYTES = 32
_TOKEN = re.compile(r"chp_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
_REMEDY = "restore it, or move it away and make new tokens with `chaperone-cloud token create`"
# argon2id slows down the guessing of secrets that people choose. These have 256 random bits, which nobody guesses, so
# that small parameters are right: 1 MiB and under a millisecond for each check.
_HASHER = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


class TokenEntry(FrozenModel):
    """One token, as the file holds it."""

    id: str = Field(pattern=rf"^[a-z0-9]{{{_ID_LENGTH}}}$")
    tenant: Annotated[str, AfterValidator(check_tenant)]
    hash: str = Field(pattern=r"^\$argon2id\$[!-~]{1,200}$", repr=False)  # argon2's encoding, with salt and parameters
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def expired(self, now: datetime) -> bool:
        """Return whether the time of the token is over."""
        return self.expires is not None and self.expires <= now

    def stands(self, now: datetime) -> bool:
        """Return whether the token still names its tenant: neither revoked nor expired."""
        return self.revoked is None and not self.expired(now)

    def matches(self, secret: str) -> bool:
        """Return whether this is the secret of the token. Takes about a millisecond, and no shorter for a wrong one."""
        try:
            return _HASHER.verify(self.hash, secret)
        except (Argon2Error, InvalidHashError):
            return False


class _Document(FrozenModel):
    tokens: tuple[TokenEntry, ...]


class TokenFile:
    """The content of a tokens file: one JSON document."""

    def __init__(self, entries: Sequence[TokenEntry]) -> None:
        self.entries = tuple(entries)  # in the order of their creation
        self._by_id: Mapping[str, TokenEntry] = MappingProxyType({entry.id: entry for entry in entries})

    def find(self, token_id: str) -> TokenEntry | None:
        """Return the token of this id."""
        return self._by_id.get(token_id)

    @classmethod
    def load(cls, path: Path) -> TokenFile:
        """Read a file; raises ConfigError. Logs a warning if other users of the machine may read or change it."""
        try:
            content = path.read_bytes()
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: no such file; make it with `chaperone-cloud token create --tenant NAME --tokens {path}`"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        if mode & 0o007:
            _LOG.warning("%s: everybody on this machine can read or change it; run chmod 600 %s", path, path)
        return cls(_parse(path, content))

    @classmethod
    def create(
        cls, path: Path, tenant: str, expires_in: timedelta | None = None, *, now: datetime | None = None
    ) -> str:
        """Add a token and return it. This is the only time that its secret can be seen.

        Makes the file, readable by its owner alone, if there is none. Raises ConfigError or OutputLost.
        """
        try:
            check_tenant(tenant)
        except ValueError as error:
            raise ConfigError(f"tenant: {tenant!r}: {error}") from None
        now = (now or datetime.now(UTC)).replace(microsecond=0)
        with _locked(path):
            entries = cls.load(path).entries if path.exists() else ()
            taken = {entry.id for entry in entries}
            token_id = next(new for new in iter(_new_id, None) if new not in taken)
            secret = secrets.token_urlsafe(_SECRET_BYTES)
            expires = None if expires_in is None else now + expires_in
            entry = TokenEntry(id=token_id, tenant=tenant, hash=_HASHER.hash(secret), created=now, expires=expires)
            _store(path, (*entries, entry))
        return f"{PREFIX}{token_id}_{secret}"

    @classmethod
    def revoke(cls, path: Path, token_id: str, *, now: datetime | None = None) -> TokenEntry:
        """Revoke a token, and return its entry; does nothing if it is revoked already. Raises ConfigError."""
        now = (now or datetime.now(UTC)).replace(microsecond=0)
        with _locked(path):
            file = cls.load(path)
            entry = file.find(token_id)
            if entry is None:
                raise ConfigError(f"{path}: there is no token of this id; `chaperone-cloud token list` shows all")
            if entry.revoked is None:
                entry = entry.model_copy(update={"revoked": now})
                _store(path, [entry if other.id == token_id else other for other in file.entries])
        return entry


def split_token(token: str) -> tuple[str, str] | None:
    """Return the id and the secret of a token, or None for any other text."""
    found = _TOKEN.fullmatch(token)
    return (found[1], found[2]) if found else None


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


def _parse(path: Path, content: bytes) -> tuple[TokenEntry, ...]:
    try:
        entries = _Document.model_validate_json(content).tokens
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]  # the input may be a hash
        where = ".".join(map(str, first["loc"])) or "the file"
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {where}: {problem}; {_REMEDY}") from None
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise ConfigError(f"{path}: tokens: the id {entry.id} is given twice; remove one of them")
        seen.add(entry.id)
    return entries


def _store(path: Path, entries: Sequence[TokenEntry]) -> None:
    listed = [entry.model_dump(mode="json", exclude_none=True) for entry in entries]
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in listed)
    replace_file(path, [f'{{"tokens": [\n{lines}\n]}}\n'.encode()], mode=0o600)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing the file in this block, so that no change is lost.

    The lock is on the folder: the file itself is replaced by each change, and a file for the lock would be left over.
    """
    folder = Path(os.path.realpath(path)).parent
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{path}: its folder cannot be opened: {error.strerror}; make the folder first") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
