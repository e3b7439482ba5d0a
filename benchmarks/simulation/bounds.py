"""Lower bounds on the time of one trace with exact output.

Model. n tokens have to become final on the device. A draft step takes `draft_ms`. A message takes `rtt_ms / 2` each
way. The cloud runs one forward at a time. A forward over k tokens takes `verify_ms(k)` and judges k positions. It
compares drafts with the cloud's choices at the first k - 1 of them. At the last one it writes the cloud's own token,
which is an override or a bonus.

So a forward over positions [f, f + k) needs the drafts of f .. f + k - 2 at the cloud, and all of them must be right.
They can only be right where the device agrees with the cloud. A forward over one position needs no draft: this is a
takeover, which takes `stream_ms` per token. When the clock starts, both ends hold the prompt, and nothing is drafted or
judged. Sizes, bandwidth and all other overheads are 0.

The clairvoyant bound. The device knows the positions of the overrides, but not their tokens. It drafts up to the next
override and sends each token at once. The cloud divides the tokens that have arrived into forwards. A schedule consists
of chains. In a chain the device drafts a, a + 1, ... without a break, after it received the token before a from the
cloud. That token was the last position of its forward, else the device would have drafted it. Let R[a] be the end of
that forward. The chain starts at R[a] + rtt/2 (the first one at 0), and the draft of j arrives at the cloud at

    A[j] = start + (j - a + 1) draft_ms + rtt/2.

Later times depend on the past only through R[a], and a smaller R[a] is never worse. Let q be the first override at or
after a. Let G[f] be the time at which all positions before f are judged. Within the chain

    G[a] = R[a]
    G[f] = min( G[f-1] + stream_ms,  min over a <= e <= f-2 of  max(G[e], A[f-2]) + verify_ms(f - e) ),  f <= q + 1.

The device may end the chain at any f and start again from the cloud's last token: R[f] = min over a of G_a[f]. All
tokens are final at R[n] + rtt/2. A new start at f is skipped if the chain that reaches R[f] has drafted past f by then,
because that chain is at least as good. A forward may also hold useless tokens. So these formulas use the least
`verify_ms(m)` with k <= m <= n in place of `verify_ms(k)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chaperone_common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Costs:
    """Durations of steps in milliseconds.

    `verify_ms` maps the number of tokens in a forward to its time. It is a function or a table. A table is interpolated
    between its rows, constant below the first row, and extrapolated with the last slope. Raises ConfigError.
    """

    draft_ms: float
    rtt_ms: float
    stream_ms: float  # per token that the cloud writes without a draft
    verify_ms: Callable[[int], float] | Mapping[int, float]

    def __post_init__(self) -> None:
        for name in ("draft_ms", "rtt_ms", "stream_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: {value} is no time; give a number of milliseconds, 0 or more")
        if isinstance(self.verify_ms, Mapping) and not (self.verify_ms and min(self.verify_ms) >= 1):
            raise ConfigError(f"verify_ms: {dict(self.verify_ms)}; give milliseconds for at least one count of tokens")

    def reading_ms(self, tokens: int) -> NDArray[np.float64]:
        """Return the least time of a forward over at least k tokens, at index k: [tokens + 1], infinite at 0."""
        counts = np.arange(1, tokens + 1)
        if isinstance(self.verify_ms, Mapping):
            times = _interpolated(self.verify_ms, counts)
        else:
            times = np.array([self.verify_ms(int(count)) for count in counts], dtype=np.float64)
        if not (np.isfinite(times) & (times >= 0)).all():
            raise ConfigError(f"verify_ms: no time for every count of tokens up to {tokens}; give 0 or more for each")
        return np.concatenate(([np.inf], np.minimum.accumulate(times[::-1])[::-1]))


def clairvoyant_ms(agrees: Sequence[bool], costs: Costs, *, takeover: bool = True, skipping: bool = False) -> float:
    """Return the least time until all tokens are final, for any strategy that drafts one chain.

    `agrees` [tokens] is True at the positions where the device's choice is the cloud's. Without `takeover` the cloud
    writes only on request: it judges a single position once a draft of it, or the right draft before it, has arrived.
    With `skipping`, tokens that agree are final as soon as they are drafted. This bounds a gate that catches every
    override and asks about no other token.
    """
    n = len(agrees)
    if n == 0:
        return 0.0
    reading = costs.reading_ms(n)
    alone = min(costs.stream_ms, reading[1]) if takeover else reading[1]
    one_way, step = costs.rtt_ms / 2, costs.draft_ms
    stops = _next_override(agrees)
    reached = np.full(n + 1, np.inf)  # R
    reached[0] = 0.0
    overtaken = np.zeros(n + 1, dtype=bool)
    done = np.inf
    for a in range(n):
        if overtaken[a]:
            continue
        start = reached[a] + one_way if a else 0.0
        stop = stops[a]
        if skipping and stop == n:
            done = min(done, start + (n - a) * step)
        last = min(stop + 1, n)
        judged = np.full(last - a + 1, np.inf)  # G, from position a on
        judged[0] = reached[a]
        for i in range(1, last - a + 1):
            arrival = start + i * step + one_way  # of the draft of a + i - 1
            asked = 0.0 if takeover else arrival - step * (i > 1)
            judged[i] = max(judged[i - 1], asked) + alone
            if i > 1:
                begun = np.maximum(judged[: i - 1], arrival - step)
                judged[i] = min(judged[i], (begun + reading[i:1:-1]).min())
            f = a + i
            if judged[i] <= reached[f]:
                reached[f] = judged[i]
                overtaken[f] = f <= stop and start + i * step <= judged[i] + one_way
    return float(min(done, reached[n] + one_way))


def physical_floor_ms(tokens: int, costs: Costs) -> float:
    """Return a time that no strategy beats with this pair and this link, trees and branches included.

    It is the clairvoyant bound of a text on which the device is always right. Each token takes a draft step or a
    forward of the cloud, the cloud reads every token, and neither end uses a token before it has arrived. Assumptions:
    exact output, one device and one cloud of these speeds, and no other source of drafts. With `draft_ms=0` the bound
    is one round trip and the cheapest division into forwards, or the cloud's own writing if that is less.
    """
    return clairvoyant_ms((True,) * tokens, costs)


def streaming_ms(tokens: int, costs: Costs) -> float:
    """Return the time of cloud streaming: one request, all tokens, and the way back of the last one."""
    return costs.rtt_ms + tokens * costs.stream_ms


def _next_override(agrees: Sequence[bool]) -> list[int]:
    """Return, for each position, the next position where the device does not agree, itself included; else n."""
    stops = [len(agrees)] * (len(agrees) + 1)
    for i in range(len(agrees) - 1, -1, -1):
        stops[i] = stops[i + 1] if agrees[i] else i
    return stops


def _interpolated(table: Mapping[int, float], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    known = np.array(sorted(table))
    times = np.array([table[int(count)] for count in known], dtype=np.float64)
    result = np.interp(counts, known, times)
    if len(known) > 1:
        slope = max(0.0, (times[-1] - times[-2]) / (known[-1] - known[-2]))
        result += np.maximum(0, counts - known[-1]) * slope
    return result
