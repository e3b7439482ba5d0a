"""The waiting line: the order in which requests of many tenants are served.

Within one urgency, the tenant that was served least is next (the virtual token counter of Sheng et al., "Fairness in
Serving Large Language Models", OSDI 2024). The requests of one tenant and urgency are served in turn, in the order of
their arrival, one chunk each. One that has been their first for more than `PATIENCE` steps goes before all others, so
that none waits for ever.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from chaperone_common.beams.scoring import Scores
from chaperone_common.conditioning import Encoding
from chaperone_common.types import Choice
from cloud_supervisor.model.ports import ForwardResult, Found, Urgency
from cloud_supervisor.scheduling.batch import QueuedRequest

PATIENCE = 8  # steps


@dataclass(slots=True, eq=False)
class Progress:
    """A request and its progress."""

    request: QueuedRequest
    queued_at: float
    reached: int = 0  # tokens of the chain that earlier chunks have read
    cached: int | None = None  # tokens of the chain that the cache held before the first chunk
    begun: bool = False  # its first chunk was scheduled, so that no deadline applies any longer
    holds_memory: bool = False  # its whole text has a place in the KV budget
    preempted: bool = False  # it lost that place once, and will not lose it again
    choices: list[Choice] = field(default_factory=list)
    encoding: Encoding | None = None  # the rows so far
    scores: Scores | None = None
    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def choices_left(self) -> int:
        """Choices, or rows of the encoding, that no chunk has computed yet."""
        rows = len(self.encoding) if self.encoding is not None else 0
        return self.request.num_choices - len(self.choices) - rows - (self.scores is not None)

    def add(self, found: Found) -> None:
        """Take what a chunk has computed."""
        match found:
            case Scores():
                self.scores = found
            case Encoding() if len(found):
                self.encoding = found if self.encoding is None else self.encoding.followed_by(found)
            case list():
                self.choices += found
            case _:  # rows of no token
                pass

    @property
    def finished(self) -> bool:
        """The whole text was read."""
        return self.reached == self.request.tree.end

    @property
    def result(self) -> ForwardResult:
        """The choices, encoding or scores, and times, of a finished request."""
        return ForwardResult(
            self.choices,
            round(self.queue_s * 1e6),
            round(self.compute_s * 1e6),
            cached_tokens=self.cached or 0,
            encoding=self.encoding,
            scores=self.scores,
        )


@dataclass(slots=True)
class _Queue:
    """The requests of one tenant and urgency, in the order of service."""

    urgency: Urgency
    tenant: str
    first_since: int  # the step from which the first one has been the first
    waiting: deque[Progress] = field(default_factory=deque)


class WaitingLine:
    """Requests that wait, by urgency and tenant."""

    def __init__(self) -> None:
        self._queues: dict[tuple[Urgency, str], _Queue] = {}  # none is empty
        self._served: dict[str, float] = {}  # tokens fed for each tenant, or its head start
        self._present: Counter[str] = Counter()  # by tenant: requests between `arrive` and `leave`
        self._step = 0
        self._length = 0

    def __len__(self) -> int:
        """Return the number of waiting requests."""
        return self._length

    def arrive(self, progress: Progress) -> None:
        """Add a new request."""
        tenant = progress.request.tenant
        if not self._present[tenant]:
            # A tenant saves nothing up while it is away.
            others = [self._served[other] for other in self._present if other != tenant]
            self._served[tenant] = max(self._served.get(tenant, 0.0), min(others, default=0.0))
        self._present[tenant] += 1
        self.wait(progress)

    def wait(self, progress: Progress) -> None:
        """Let a request wait for its first or next chunk, after the others of its queue."""
        urgency, tenant = progress.request.urgency, progress.request.tenant
        if (urgency, tenant) not in self._queues:
            self._queues[urgency, tenant] = _Queue(urgency, tenant, self._step)
        self._queues[urgency, tenant].waiting.append(progress)
        self._length += 1

    def take(self, progress: Progress) -> None:
        """Remove a waiting request, because it is served, refused or cancelled."""
        key = progress.request.urgency, progress.request.tenant
        queue = self._queues[key]
        if queue.waiting[0] is progress:
            queue.waiting.popleft()
            queue.first_since = self._step
        else:
            queue.waiting.remove(progress)
        if not queue.waiting:
            del self._queues[key]
        self._length -= 1

    def leave(self, progress: Progress) -> None:
        """Forget a request that does not wait."""
        tenant = progress.request.tenant
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant]
        if not self._present:
            self._served.clear()

    def charge(self, tenant: str, tokens: int) -> None:
        """Count tokens that are fed for a tenant."""
        self._served[tenant] += tokens

    def in_order(self) -> Iterator[Progress]:
        """Return the requests of one step in the order of service.

        The caller takes a request before it asks for the next, or passes it over. After that, only those of its queue
        follow that have begun: it may wait for the memory that they hold.
        """
        self._step += 1
        # A queue's rank only gets worse during a step, so a heap finds the best one without a look at all the others.
        heap = [(self._rank(queue), number, queue) for number, queue in enumerate(self._queues.values())]
        heapq.heapify(heap)
        while heap:
            rank, number, queue = heap[0]
            if not queue.waiting:
                heapq.heappop(heap)
                continue
            if (now := self._rank(queue)) != rank:
                heapq.heapreplace(heap, (now, number, queue))
                continue
            first = queue.waiting[0]
            yield first
            if queue.waiting and queue.waiting[0] is first:
                heapq.heappop(heap)
                yield from [progress for progress in queue.waiting if progress.holds_memory and progress is not first]

    def _rank(self, queue: _Queue) -> tuple[float, ...]:
        if self._step - queue.first_since > PATIENCE:
            return (-1, queue.first_since)
        return (queue.urgency, self._served[queue.tenant], queue.waiting[0].queued_at)
