"""The time that requests of one service wait for its model, for those who add and remove replicas."""

from __future__ import annotations

from cloud_supervisor.observation import Answered, Observation, Prefilled


class QueueTimes:
    """The mean queue time of the answers since it was last read."""

    def __init__(self) -> None:
        self._sum_s = 0.0
        self._answers = 0
        self._last_ms = 0.0

    def notice(self, observation: Observation) -> None:
        if isinstance(observation, Prefilled | Answered):
            self._sum_s += observation.queue_s
            self._answers += 1

    def read_ms(self, *, waiting: bool) -> float:
        """Return the mean in milliseconds, and begin again.

        Without an answer it is 0; if requests are `waiting`, it is the last one.
        """
        if self._answers:
            self._last_ms = 1e3 * self._sum_s / self._answers
        elif not waiting:
            self._last_ms = 0.0
        self._sum_s, self._answers = 0.0, 0
        return self._last_ms
