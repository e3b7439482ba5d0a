"""The rules by which sessions are opened, and the use of the cloud by each tenant.

Pure: it counts, and the supervisor reports what happens. Every refusal names the quota or limit, its value and the time
after which another attempt may succeed.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import NamedTuple

from chaperone_common.clock import Clock
from chaperone_common.errors import Overloaded, PermissionDenied, PromptTooLong, QuotaExceeded
from chaperone_common.frames import Open, QuotaState
from chaperone_common.types import SessionId
from cloud_supervisor.config import LimitsConfig, QuotasConfig, TenantQuota

_RETRY_MS = 1000  # where only the end of another session helps
_SHARE_BACK = 0.1  # of a rate that is free again before another attempt, so that it is not refused at once


class PromptOverQuota(PromptTooLong):
    """A text that the tenant's quota can never hold, however long the device waits. `quota` is its name."""

    def __init__(self, message: str, *, quota: str) -> None:
        super().__init__(message)
        self.quota = quota


class SessionKey(NamedTuple):
    """A session belongs to a tenant: nobody can supersede, resume or read another's."""

    tenant: str
    session_id: SessionId


class Rate:
    """A token bucket: `per_minute` on average, and at most as many at once. A use may leave a debt."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._at = clock.now()

    @property
    def used(self) -> int:
        """The part that is not free again yet."""
        return math.ceil(self.per_minute - self._refilled())

    def take(self, amount: int) -> None:
        """Use an amount, whether it is free or not."""
        self._left = self._refilled() - amount

    def wait_s(self) -> float:
        """Return 0 if something is free, else the time until a tenth of the rate is."""
        left = self._refilled()
        return 0.0 if left > 0 else (self.per_minute * _SHARE_BACK - left) * 60.0 / self.per_minute

    def _refilled(self) -> float:
        now = self._clock.now()
        self._left = min(float(self.per_minute), self._left + (now - self._at) * self.per_minute / 60.0)
        self._at = now
        return self._left


@dataclass(slots=True)
class _Account:
    """The use of one tenant."""

    quota: TenantQuota
    streams: Rate
    positions: Rate
    sent: Rate  # bytes of models
    transfers: int = 0  # that are open


class Admission:
    """Counts the open sessions and the work of all tenants."""

    def __init__(self, limits: LimitsConfig, quotas: QuotasConfig, capacity_tokens: int | None, clock: Clock) -> None:
        """Admit texts to a KV budget of `capacity_tokens`; None for no such limit."""
        self._limits = limits
        self._quotas = quotas
        self._capacity_tokens = sys.maxsize if capacity_tokens is None else capacity_tokens
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._text_tokens: dict[SessionKey, int] = {}  # of the open sessions: tokens in the text now
        self._longest_tokens: dict[SessionKey, int] = {}  # of them: tokens that the text may reach

    @property
    def sessions(self) -> int:
        """Sessions that are open."""
        return len(self._text_tokens)

    @property
    def full(self) -> bool:
        """No further session is admitted, of any tenant."""
        return self.sessions >= self._limits.max_sessions

    def begin_stream(self, tenant: str) -> None:
        """Count a new stream; raises QuotaExceeded if the tenant begins too many."""
        rate = self._account(tenant).streams
        if (wait_s := rate.wait_s()) > 0:
            raise _exceeded(tenant, "streams_per_minute", rate.per_minute, "have begun", wait_s)
        rate.take(1)

    def admit(self, key: SessionKey, opening: Open, *, longest: int) -> None:
        """Open a session, or open it again; its text may reach `longest` tokens.

        Raises PromptTooLong for a text that this cloud can never serve, QuotaExceeded, or Overloaded.
        """
        quota = self._account(key.tenant).quota
        text_tokens = len(opening.prompt_token_ids) + len(opening.committed_token_ids)
        if text_tokens > self._capacity_tokens:
            raise PromptTooLong(
                f"prompt: {text_tokens} tokens do not fit into the cloud's cache for {self._capacity_tokens}; shorten "
                "it, or raise kv_budget_mib on the cloud"
            )
        if quota.max_prompt_tokens is not None and len(opening.prompt_token_ids) > quota.max_prompt_tokens:
            raise PromptOverQuota(
                f"prompt: {len(opening.prompt_token_ids)} tokens, tenant {key.tenant!r} may send "
                f"{quota.max_prompt_tokens} (quotas.max_prompt_tokens); shorten it",
                quota="prompt_tokens",
            )
        self.check_work(key.tenant)
        if key not in self._text_tokens:
            self._check_sessions(key.tenant, quota)
        self._check_kv(key, quota, text_tokens, longest)
        self._text_tokens[key] = text_tokens
        self._longest_tokens[key] = longest

    def grow(self, key: SessionKey, text_tokens: int) -> None:
        """Note the length of an open session's text."""
        if key in self._text_tokens:
            self._text_tokens[key] = text_tokens

    def release(self, key: SessionKey) -> None:
        """Close a session; unknown ones are no error."""
        self._text_tokens.pop(key, None)
        self._longest_tokens.pop(key, None)

    def check_work(self, tenant: str) -> None:
        """Raise QuotaExceeded if the tenant has used up its positions."""
        rate = self._account(tenant).positions
        if (wait_s := rate.wait_s()) > 0:
            raise _exceeded(tenant, "positions_per_minute", rate.per_minute, "have been verified", wait_s)

    def charge(self, tenant: str, positions: int) -> None:
        """Count positions that the model has computed choices for, whether or not the device's tokens stand."""
        self._account(tenant).positions.take(positions)

    def begin_transfer(self, tenant: str) -> None:
        """Count a transfer of a model's file; raises PermissionDenied, Overloaded or QuotaExceeded."""
        limit = self._limits.max_transfers
        if not limit:
            raise PermissionDenied("transfers: this cloud sends no models; pull from a folder or a URL, with --from")
        account = self._account(tenant)
        mine = self._transfer_limit(account.quota)
        if account.transfers >= mine:
            raise _exceeded(tenant, "transfers", mine, "are open", _RETRY_MS / 1000)
        if (opened := sum(each.transfers for each in self._accounts.values())) >= limit:
            raise Overloaded(
                f"transfers: {opened} are open, the limit is {limit}; try again later", retry_after_ms=_RETRY_MS
            )
        if (wait_s := account.sent.wait_s()) > 0:
            raise _exceeded(
                tenant, "transfer_mib_per_minute", account.quota.transfer_mib_per_minute, "have been sent", wait_s
            )
        account.transfers += 1

    def end_transfer(self, tenant: str) -> None:
        """Count a transfer as ended."""
        self._account(tenant).transfers -= 1

    def charge_transfer(self, tenant: str, sent_bytes: int) -> None:
        """Count bytes of a model that are sent to a tenant."""
        self._account(tenant).sent.take(sent_bytes)

    def states(self, tenant: str) -> tuple[QuotaState, ...]:
        """Return the quotas of a tenant and their use."""
        account = self._account(tenant)
        quota = account.quota
        longest = sum(tokens for key, tokens in self._longest_tokens.items() if key.tenant == tenant)
        states = [
            QuotaState("sessions", self._session_limit(quota), self._open(tenant)),
            QuotaState("streams_per_minute", account.streams.per_minute, account.streams.used),
            QuotaState("positions_per_minute", account.positions.per_minute, account.positions.used),
        ]
        if self._limits.max_transfers:
            states.append(QuotaState("transfers", self._transfer_limit(quota), account.transfers))
            states.append(QuotaState("transfer_mib_per_minute", quota.transfer_mib_per_minute, account.sent.used >> 20))
        if quota.max_kv_tokens is not None:
            states.append(QuotaState("kv_tokens", quota.max_kv_tokens, longest))
        if quota.max_prompt_tokens is not None:
            states.append(QuotaState("prompt_tokens", quota.max_prompt_tokens, 0))
        return tuple(states)

    def _check_sessions(self, tenant: str, quota: TenantQuota) -> None:
        if self.full:
            raise Overloaded(
                f"sessions: {self.sessions} are open, the limit is {self._limits.max_sessions}; try again later",
                retry_after_ms=_RETRY_MS,
            )
        mine, limit = self._open(tenant), self._session_limit(quota)
        if mine >= limit:
            raise _exceeded(tenant, "sessions", limit, "are open", _RETRY_MS / 1000)

    def _check_kv(self, key: SessionKey, quota: TenantQuota, text_tokens: int, longest: int) -> None:
        others = sum(tokens for other, tokens in self._text_tokens.items() if other != key)
        most = int(self._capacity_tokens * self._limits.kv_overcommit)
        if others and others + text_tokens > most:
            raise Overloaded(
                f"kv budget: the open texts hold {others} tokens, {text_tokens} more would pass {most} "
                "(kv_budget_mib x limits.kv_overcommit); try again later",
                retry_after_ms=_RETRY_MS,
            )
        if quota.max_kv_tokens is None:
            return
        if longest > quota.max_kv_tokens:
            raise PromptOverQuota(
                f"prompt: it may grow to {longest} tokens, tenant {key.tenant!r} may hold {quota.max_kv_tokens} "
                "(quotas.max_kv_tokens); shorten it, or lower max_new_tokens",
                quota="kv_tokens",
            )
        mine = sum(t for other, t in self._longest_tokens.items() if other != key and other.tenant == key.tenant)
        if mine + longest > quota.max_kv_tokens:
            raise _exceeded(key.tenant, "kv_tokens", quota.max_kv_tokens, "are reserved", _RETRY_MS / 1000)

    def _open(self, tenant: str) -> int:
        return sum(key.tenant == tenant for key in self._text_tokens)

    def _session_limit(self, quota: TenantQuota) -> int:
        return min(quota.max_sessions or self._limits.max_sessions, self._limits.max_sessions)

    def _transfer_limit(self, quota: TenantQuota) -> int:
        return min(quota.max_transfers or self._limits.max_transfers, self._limits.max_transfers)

    def _account(self, tenant: str) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            quota = self._quotas.of(tenant)
            streams, positions = quota.streams_per_minute, quota.positions_per_minute
            sent = Rate(quota.transfer_mib_per_minute << 20, self._clock)
            account = _Account(quota, Rate(streams, self._clock), Rate(positions, self._clock), sent)
            self._accounts[tenant] = account
        return account


def _exceeded(tenant: str, quota: str, limit: int, what: str, wait_s: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"quota: {quota}: tenant {tenant!r} may have {limit}, and as many {what}; try again in {wait_s:.1f} s",
        quota=quota,
        retry_after_ms=math.ceil(wait_s * 1000),
    )
