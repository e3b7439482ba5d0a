"""An entrance that names tenants by metadata, and remembers what was observed."""

from __future__ import annotations

from cloud_supervisor.caller import Caller
from cloud_supervisor.hosting.entrance import Entrance
from cloud_supervisor.observation import Observation
from cloud_supervisor.observers.instruments import Instruments
from cloud_supervisor.service import AuthContext, Metadata


class NamedCallers:
    """Believes the metadata `tenant`. Tenants in `revoked` are no longer valid."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext, peer: str) -> Caller:
        return Caller(str(dict(metadata).get("tenant", "nobody")), peer)

    def valid(self, caller: Caller) -> bool:
        return caller.tenant not in self.revoked

    def close(self) -> None:
        """Do nothing: no check waits."""


class Observed:
    """An `Observer` that keeps everything."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []

    def notice(self, observation: Observation) -> None:
        self.observations.append(observation)

    def of(self, *kinds: type[Observation]) -> list[Observation]:
        """Return the observations of these kinds, oldest first."""
        return [observation for observation in self.observations if isinstance(observation, kinds)]


def watched(observed: Observed | None = None, callers: NamedCallers | None = None) -> Entrance:
    """Return an entrance in plain text that believes its callers."""
    return Entrance(callers or NamedCallers(), None, Instruments(observed or Observed()))
