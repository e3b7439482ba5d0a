"""The caller of a stream: who it is, by its token or certificate, and whether that still stands."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from chaperone_common.clock import Clock
from chaperone_common.errors import ChaperoneError, Overloaded, PermissionDenied, Unauthenticated
from cloud_supervisor.caller import ANONYMOUS, TENANT_URI, Caller, check_tenant
from cloud_supervisor.security.jwt_tokens import JwtVerifier
from cloud_supervisor.security.tokens import PREFIX, TokenEntry, TokenFile, split_token
from cloud_supervisor.security.watched import Watched
from cloud_supervisor.security.x509 import ClientCertificate, read_client

NO_TOKEN = "authorization: no token; give --token-file or CHAPERONE_TOKEN"
NOT_VALID = "authorization: the token is not valid"

_CACHED = 4096  # tokens; each takes a few hundred bytes
_CACHED_REFUSALS = 512
_REFUSED_FOR_S = 10.0  # a refused token is not checked again before that
_MOST_WAITING = 256  # tokens that wait for their check; at a millisecond each the last waits a quarter of a second
_BUSY_RETRY_MS = 1_000

Metadata = Sequence[tuple[str, str | bytes]]
AuthContext = Mapping[str, Iterable[bytes]]


class TokenEnded(Unauthenticated):
    """A token whose secret is right was revoked or has expired.

    `token_id` is no secret, and the operator knows the device by it.
    """

    def __init__(self, message: str, *, token_id: str) -> None:
        super().__init__(message)
        self.token_id = token_id


class _Identity(NamedTuple):
    """The result of a successful check."""

    tenant: str
    credential: str
    expires_at: float | None  # seconds since 1970; None if only the tokens file can end it
    binding: bool = True  # False for a certificate that names its tenant by its common name alone


class _Refused(NamedTuple):
    """The result of a failed check."""

    error: ChaperoneError
    until: float  # of the monotonic clock


@dataclass(frozen=True, slots=True)
class ExpiringCaller(Caller):
    """A caller whose credential ends by itself."""

    expires_at: float = 0.0  # seconds since 1970


class Authenticator:
    """Turns the metadata and the certificate of a call into a `Caller`. Belongs to one event loop.

    Without any credentials configured, every caller is ANONYMOUS. With tokens or JWTs, each call needs a token, unless
    the client has shown a certificate. With certificates alone, each call needs one.
    """

    def __init__(
        self,
        *,
        tokens_file: Path | None = None,
        jwt: JwtVerifier | None = None,
        client_certificates: bool = False,
        clock: Clock,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Read the tokens file; raises ConfigError.

        `client_certificates` says that TLS verifies them; otherwise none is looked at. `wall` returns seconds since
        1970, and `clock` measures how long results are kept.
        """
        self._tokens: Watched[TokenFile] | None = None
        if tokens_file is not None:  # looked at for each call, so that a new token can be used at once
            self._tokens = Watched(lambda: TokenFile.load(tokens_file), [tokens_file], clock, look_every_s=0.0)
        self._jwt = jwt
        self._client_certificates = client_certificates
        self._clock = clock
        self._wall = wall
        # A thread of its own: checks must delay neither frames nor the model.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="authentication")
        self._cache = _Cache(_CACHED)
        self._refusals = _Cache(_CACHED_REFUSALS)  # of their own, so that a flood of them forgets no valid token
        self._pending: dict[bytes, asyncio.Future[_Identity | _Refused]] = {}

    @property
    def is_open(self) -> bool:
        """True if nobody needs credentials."""
        return self._tokens is None and self._jwt is None and not self._client_certificates

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext, peer: str) -> Caller:
        """Return the caller of a call; the arguments are those of gRPC's context.

        Raises Unauthenticated, PermissionDenied, or Overloaded if too many tokens wait for their check. No message
        quotes a token.
        """
        address = peer_address(peer)
        certificate = self._certificate(auth_context)
        if self._tokens is None and self._jwt is None:
            if certificate is not None:
                return self._caller(certificate, address)
            if self._client_certificates:
                raise Unauthenticated("certificate: none was shown; give cloud.cert_file and cloud.key_file")
            return Caller(ANONYMOUS, address)
        token = _bearer(metadata)
        if token is None:
            if certificate is None:
                raise Unauthenticated(NO_TOKEN)
            return self._caller(certificate, address)
        identity = await self._identity(token)
        if certificate is not None and certificate.binding and certificate.tenant != identity.tenant:
            raise PermissionDenied(
                f"authorization: the token is of tenant {identity.tenant}, and the certificate of "
                f"{certificate.tenant}; use credentials of one tenant"
            )
        return self._caller(identity, address)

    def valid(self, caller: Caller) -> bool:
        """Return whether the credential of a caller still stands: neither revoked, removed nor expired.

        Quick enough for the event loop. If the tokens file has changed, it is read again first: about 13 ms for 1,000
        tokens.
        """
        if isinstance(caller, ExpiringCaller):
            return self._wall() < caller.expires_at
        if not caller.credential:
            return True
        entry = self._tokens.value.find(caller.credential) if self._tokens is not None else None
        return entry is not None and entry.tenant == caller.tenant and entry.stands(self._now())

    def close(self) -> None:
        """End the thread, and all checks that wait."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _caller(self, identity: _Identity, address: str) -> Caller:
        if identity.expires_at is None:
            return Caller(identity.tenant, address, identity.credential)
        return ExpiringCaller(identity.tenant, address, identity.credential, identity.expires_at)

    def _certificate(self, auth_context: AuthContext) -> _Identity | None:
        pem = b"".join(auth_context.get("x509_pem_cert", ()))
        if not self._client_certificates or not pem:
            return None
        try:
            certificate = read_client(pem)
        except ValueError as error:
            raise Unauthenticated(f"certificate: {error}") from None
        if certificate.expires_at <= self._wall():  # a connection outlives the check of its handshake
            raise Unauthenticated("certificate: it has expired; renew the one in cloud.cert_file")
        tenant, binding = _tenant_of(certificate)
        return _Identity(tenant, f"certificate {certificate.serial}", certificate.expires_at, binding)

    async def _identity(self, token: str) -> _Identity:
        """Return the identity that a token names; a known token costs one look-up."""
        digest = hashlib.sha256(token.encode()).digest()  # of the sender's choice, so that equal bytes reveal nothing
        version = self._version
        found = self._cache.get(digest, version) or self._refusals.get(digest, version)
        if found is None or self._is_over(found):
            found = await self._check_once(digest, token)
            (self._refusals if isinstance(found, _Refused) else self._cache).put(digest, found, version)
        if isinstance(found, _Refused):
            raise type(found.error)(found.error.message)
        if found.expires_at is not None:
            return found
        return self._standing(found)

    @property
    def _version(self) -> tuple[int, int]:
        """A value that changes with the tokens file and the keys of JWTs."""
        if self._tokens is not None:
            _ = self._tokens.value  # notices a change
        return (self._tokens.version if self._tokens is not None else 0, self._jwt.version if self._jwt else 0)

    def _is_over(self, found: _Identity | _Refused) -> bool:
        if isinstance(found, _Refused):
            return self._clock.now() >= found.until
        return found.expires_at is not None and self._wall() >= found.expires_at

    async def _check_once(self, digest: bytes, token: str) -> _Identity | _Refused:
        """Check a token in the thread; callers that bring the same token at the same time share the check."""
        pending = self._pending.get(digest)
        if pending is None:
            if len(self._pending) >= _MOST_WAITING:
                raise Overloaded(
                    "authorization: too many tokens wait for their check; try again", retry_after_ms=_BUSY_RETRY_MS
                )
            pending = asyncio.get_running_loop().run_in_executor(self._thread, self._check, token)
            self._pending[digest] = pending
            pending.add_done_callback(lambda _: self._pending.pop(digest, None))
        return await asyncio.shield(pending)

    def _check(self, token: str) -> _Identity | _Refused:
        try:
            if self._tokens is not None and (token.startswith(PREFIX) or self._jwt is None):
                return self._checked_secret(self._tokens.value, token)
            if self._jwt is None or token.startswith(PREFIX):
                raise Unauthenticated(NOT_VALID)
            verified = self._jwt.verify(token)
            return _Identity(verified.tenant, "jwt", verified.expires_at)
        except (Unauthenticated, PermissionDenied) as error:
            return _Refused(error, self._clock.now() + _REFUSED_FOR_S)

    @staticmethod
    def _checked_secret(tokens: TokenFile, token: str) -> _Identity:
        """Check a token of the file. An unknown id and a wrong secret read alike, so that nobody can look for ids."""
        parts = split_token(token)
        entry = tokens.find(parts[0]) if parts is not None else None
        if parts is None or entry is None or not entry.matches(parts[1]):
            raise Unauthenticated(NOT_VALID)
        return _Identity(entry.tenant, entry.id, None)

    def _standing(self, identity: _Identity) -> _Identity:
        """Return the identity of a token whose secret was right; raises if it was revoked or has expired."""
        entry = self._tokens.value.find(identity.credential) if self._tokens is not None else None
        if entry is None:
            raise Unauthenticated(NOT_VALID)
        if entry.revoked is not None:
            raise _ended(entry, "was revoked")
        if entry.expired(self._now()):
            raise _ended(entry, "has expired")
        return identity

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)


class _Cache:
    """The results of the last checks, by the SHA-256 of the token; all of one version of the credentials."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._version: object = None
        self._results: OrderedDict[bytes, _Identity | _Refused] = OrderedDict()

    def get(self, digest: bytes, version: object) -> _Identity | _Refused | None:
        """Return a result of this version. Results of any other are dropped."""
        if version != self._version:
            self._version = version
            self._results.clear()
        if digest in self._results:
            self._results.move_to_end(digest)
        return self._results.get(digest)

    def put(self, digest: bytes, result: _Identity | _Refused, version: object) -> None:
        """Keep a result, unless the credentials have changed since its check began."""
        if version != self._version:
            return
        self._results[digest] = result
        self._results.move_to_end(digest)
        while len(self._results) > self._size:
            self._results.popitem(last=False)


def peer_address(peer: str) -> str:
    """Return the network address in gRPC's name of a peer, such as `ipv4:127.0.0.1:4711`, without the port.

    An IPv4 address in IPv6 notation is returned as IPv4, so that one host has one address.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = unquote(rest).rpartition(":")[0].strip("[]")
    return host.removeprefix("::ffff:") if "." in host else host


def _bearer(metadata: Metadata) -> str | None:
    """Return the token of a call, or None; raises Unauthenticated for anything else in its place."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        return None
    scheme, _, token = (values[0] if isinstance(values[0], str) else "").partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("authorization: it is not one `Bearer TOKEN`")
    return token.strip()


def _tenant_of(certificate: ClientCertificate) -> tuple[str, bool]:
    """Return the tenant that a certificate names, and whether it does so by a URI of ours."""
    named = {uri.removeprefix(TENANT_URI) for uri in certificate.uris if uri.startswith(TENANT_URI)}
    tenants = named or {certificate.common_name or ""}
    if len(tenants) > 1:
        raise PermissionDenied(f"certificate: it names several tenants; give one URI {TENANT_URI}NAME")
    (tenant,) = tenants
    try:
        return check_tenant(tenant), bool(named)
    except ValueError as error:
        raise PermissionDenied(
            f"certificate: neither a URI {TENANT_URI}NAME nor its common name is a tenant: {error}"
        ) from None


def _ended(entry: TokenEntry, reason: str) -> TokenEnded:
    message = f"authorization: the token {entry.id} {reason}; ask the operator of the cloud for another"
    return TokenEnded(message, token_id=entry.id)
