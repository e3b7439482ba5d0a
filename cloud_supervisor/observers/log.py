"""Refusals and ends of streams in the log."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from cloud_supervisor.observation import Observation, Refused, StreamEnded
from cloud_supervisor.observers.labels import BoundedLabels

_LOG = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between two lines of one tenant and reason
_MAX_TENANTS = 200
_MAX_REASONS = 50
# These limits are the cloud's, and their messages its own words. Messages of others may quote what a device has sent.
_OF_THE_CLOUD = frozenset({"resource_exhausted", "unavailable", "write_timeout"})
_FOR_OPERATORS = frozenset({"resource_exhausted", "write_timeout"})  # a server that stops refuses as it should


@dataclass(slots=True)
class _Unreported:
    """The refusals of one tenant, for one reason, since the last line about them."""

    count: int = 0
    peer: str = ""  # of the last one
    message: str = ""
    token: str = ""  # of the last one with a known token


class LogObserver:
    """Writes refusals and ends of streams to the log.

    Devices decide how many refusals there are. So one line per second reports those of one tenant for one reason.
    """

    def __init__(self) -> None:
        self._tenants = BoundedLabels(_MAX_TENANTS)
        self._reasons = BoundedLabels(_MAX_REASONS)
        self._unreported: dict[tuple[str, str], _Unreported] = {}

    def notice(self, observation: Observation) -> None:
        match observation:
            case Refused(tenant=tenant, peer=peer, reason=reason, message=message, token=token):
                key = self._tenants.of(tenant), self._reasons.of(reason)
                reported = key in self._unreported
                unreported = self._unreported.setdefault(key, _Unreported())
                unreported.count, unreported.peer, unreported.message = unreported.count + 1, peer, message
                unreported.token = token or unreported.token
                if not reported:
                    self._report(key)
            case StreamEnded(stream=stream, tenant=tenant, outcome=outcome, duration_s=duration_s):
                fields = {"stream": stream, "tenant": tenant, "outcome": outcome.value, "seconds": round(duration_s, 3)}
                _LOG.debug("stream ended", extra=fields)
            case _:
                pass

    def _report(self, key: tuple[str, str]) -> None:
        """Write a line about the refusals since the last one, and look again after a pause."""
        refused = self._unreported.pop(key)
        if not refused.count:
            return
        tenant, reason = key
        fields: dict[str, object] = {"tenant": tenant, "reason": reason, "count": refused.count, "peer": refused.peer}
        if refused.token:
            fields["token"] = refused.token
        if reason in _OF_THE_CLOUD:
            fields["detail"] = refused.message
        _LOG.log(logging.WARNING if reason in _FOR_OPERATORS else logging.INFO, "refused", extra=fields)
        self._unreported[key] = _Unreported()
        asyncio.get_running_loop().call_later(_PAUSE_S, self._report, key)
