"""How fast could it be? Lower bounds on the time of one trace with exact output.

The scene. n tokens are to be final on the device. A draft step takes `draft_ms`, a message `rtt_ms / 2` each way, and
one cloud worker makes one forward at a time. A forward that reads k tokens takes `verify_ms(k)` and *judges* k
positions: it holds drafts against the cloud's choices at all of them but the last, where it writes the cloud's own
token (override or bonus). So a forward over positions [f, f + k) needs the drafts of f .. f + k - 2 at the cloud, all
of them right, and the device's chain can only be right where it agrees. A forward over one position needs no draft:
that is a takeover, `stream_ms` a token. Both ends hold the prompt, nothing is drafted or judged, the clock starts.
Sizes, bandwidth and every other overhead count as nothing.

The clairvoyant bound. Let the device know where overrides fall, though not what they are. It drafts no further than to
the next override, sends each token at once, and the cloud cuts what has arrived into forwards. A schedule falls into
chains: the device drafts a, a + 1, ... without a break, where it learned the token before a from the cloud. That
token was the last position of its forward (else it would have been drafted), so if that forward ended at time R[a],
the chain starts at R[a] + rtt/2 (the first one at 0), the draft of j is at the cloud at

    A[j] = start + (j - a + 1) draft_ms + rtt/2,

and all that happens before is summed up in R[a], of which less is never worse. With q the first override at or after a,
within the chain

    G[a] = R[a]
    G[f] = min( G[f-1] + stream_ms,  min over a <= e <= f-2 of  max(G[e], A[f-2]) + verify_ms(f - e) ),  f <= q + 1,

and the device may break off at any f and start anew from what the cloud has told it: R[f] = min over a of G_a[f].
Everything is final at R[n] + rtt/2. Starting anew at f is not tried where the chain that reaches R[f] is past f by
then: going on is at least as good. A forward may hold useless tokens too, so `verify_ms(k)` counts as the least
of `verify_ms(m)`, k <= m <= n.
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
    """What steps take, in milliseconds.

    `verify_ms` maps tokens read to the time of a forward: a function, or a table that is interpolated, held constant
    below its first row and extrapolated by its last slope. Raises ConfigError.
    """

    draft_ms: float
    rtt_ms: float
    stream_ms: float  # a token that the cloud writes by itself
    verify_ms: Callable[[int], float] | Mapping[int, float]

    def __post_init__(self) -> None:
        for name in ("draft_ms", "rtt_ms", "stream_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: {value} is no time; give a number of milliseconds, 0 or more")
        if isinstance(self.verify_ms, Mapping) and not (self.verify_ms and min(self.verify_ms) >= 1):
            raise ConfigError(f"verify_ms: {dict(self.verify_ms)}; give milliseconds for at least one count of tokens")

    def reading_ms(self, tokens: int) -> NDArray[np.float64]:
        """The least time of a forward over at least k tokens, at index k: [tokens + 1], infinite at 0."""
        counts = np.arange(1, tokens + 1)
        if isinstance(self.verify_ms, Mapping):
            times = _interpolated(self.verify_ms, counts)
        else:
            times = np.array([self.verify_ms(int(count)) for count in counts], dtype=np.float64)
        if not (np.isfinite(times) & (times >= 0)).all():
            raise ConfigError(f"verify_ms: no time for every count of tokens up to {tokens}; give 0 or more for each")
        return np.concatenate(([np.inf], np.minimum.accumulate(times[::-1])[::-1]))


def clairvoyant_ms(agrees: Sequence[bool], costs: Costs, *, takeover: bool = True, skipping: bool = False) -> float:
    """The least time until all tokens are final, for any strategy that drafts one chain; `agrees` is [tokens].

    Without `takeover` the cloud speaks only when asked: it judges a lone position once a draft of it, or the right
    draft before it, has come. With `skipping`, tokens that agree are final as soon as they are drafted: the bound of a
    gate that catches every override and never asks in vain.
    """
    n = len(agrees)
    if n == 0:
        return 0.0
    reading = costs.reading_ms(n)
    alone = min(costs.stream_ms, reading[1]) if takeover else reading[1]
    way, step = costs.rtt_ms / 2, costs.draft_ms
    stops = _next_override(agrees)
    reached = np.full(n + 1, np.inf)  # R
    reached[0] = 0.0
    overtaken = np.zeros(n + 1, dtype=bool)
    done = np.inf
    for a in range(n):
        if overtaken[a]:
            continue
        start = reached[a] + way if a else 0.0
        stop = stops[a]
        if skipping and stop == n:
            done = min(done, start + (n - a) * step)
        last = min(stop + 1, n)
        judged = np.full(last - a + 1, np.inf)  # G, from position a on
        judged[0] = reached[a]
        for i in range(1, last - a + 1):
            arrival = start + i * step + way  # of the draft of a + i - 1
            asked = 0.0 if takeover else arrival - step * (i > 1)
            judged[i] = max(judged[i - 1], asked) + alone
            if i > 1:
                begun = np.maximum(judged[: i - 1], arrival - step)
                judged[i] = min(judged[i], (begun + reading[i:1:-1]).min())
            f = a + i
            if judged[i] <= reached[f]:
                reached[f] = judged[i]
                overtaken[f] = f <= stop and start + i * step <= judged[i] + way
    return float(min(done, reached[n] + way))


def physical_floor_ms(tokens: int, costs: Costs) -> float:
    """What no strategy beats with this pair and this link, whatever it drafts, trees and branches included.

    It is the clairvoyant bound of a text on which the device is always right: each token takes a draft step or a
    forward of the cloud, the cloud reads every token, and nobody acts on a token before it has come. Assumptions:
    exact output, one device and one worker of these speeds, and no other source of drafts. With `draft_ms=0` what
    remains is the cheapest cutting of the reading and one round trip, or the cloud's writing alone if that is less.
    """
    return clairvoyant_ms((True,) * tokens, costs)


def streaming_ms(tokens: int, costs: Costs) -> float:
    """Cloud streaming, the yardstick: asked once, the cloud writes everything and the last token travels back."""
    return costs.rtt_ms + tokens * costs.stream_ms


def _next_override(agrees: Sequence[bool]) -> list[int]:
    """For each position, the first one at or after it where the device's choice is not the cloud's; else n."""
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
