"""The timing of questions in `gated`: when the price of a request is worth paying.

In `gated` the device drafts on while the cloud answers, so time is lost only at an override: all tokens drafted after
it, until the answer arrives, are void. All rules here compare the time that they expect to save with the price of a
request.
"""

from __future__ import annotations

from chaperone_common.planning.costs import Costs
from chaperone_common.planning.schedule import ADVANTAGE, Schedule

# The default price of a request, as a share of the base time of a span (chosen on tuning traces). That time includes
# the queue, so a busy cloud is asked less often.
_PRICE = 0.25
_LEAST_RISK = 1e-6  # keeps a divisor above 0


def default_price_ms(costs: Costs) -> float:
    """Return the price of a request: part of the cloud's time for it, if the gate skips anything.

    The price is paid from the time that skipping saves. A gate that asks about every token saves none.
    """
    return _PRICE * (1.0 - costs.fires) * costs.read_base_ms


def skipping_schedule(schedule: Schedule, costs: Costs) -> Schedule:
    """Return the schedule of a device that skips tokens, if that is faster than a cloud that streams.

    `schedule.py` asks about every token. Where it finds that streaming is best, a token that the gate asks about is
    counted as one that the cloud streams. A skipped token takes a draft, and its part of the waits for overrides:

        t_d + min(risk, fires) * (R + V(1))
    """
    if not schedule.streams:
        return schedule
    skipped_ms = costs.draft_ms + min(costs.risk, costs.fires) * (costs.rtt_ms + costs.read_ms(1))
    token_ms = costs.fires * costs.stream_ms + (1.0 - costs.fires) * skipped_ms
    if token_ms * ADVANTAGE >= costs.stream_ms:
        return schedule
    return Schedule(1 / token_ms, streams=False, cloud_writes_on=costs.stream_ms < costs.rtt_ms)


def worth_asking_ahead(stands: float, fails: float, costs: Costs) -> bool:
    """Return whether to ask another question before the cloud has answered those in flight.

    Tokens in flight stand with the chance `stands`, and then the answer comes earlier by a round trip and a draft. This
    matters if the new question's tokens fail, with the chance `fails`. Otherwise the question is void, and its price
    lost:

        stands * fails * (R + t_d)  >=  (1 - stands) * price
    """
    return stands * fails * (costs.rtt_ms + costs.draft_ms) >= (1.0 - stands) * costs.request_ms


def worth_reading_ahead(unread: int, ending: float, costs: Costs) -> bool:
    """Return whether to send skipped tokens, `unread` of them, before the next question.

    The next question then takes `read_token_ms` less for each of them. That saves time if it finds an override, with
    the chance `risk` at each token, or if the text ends, with the chance `ending` at the next token. It costs the price
    of a request, and the delay of a question that comes while the cloud reads. If u tokens are read ahead each time,
    the cost per token is least (the economic order quantity) at

        u^2 * risk * read_token_ms / 2  =  price + delay
    """
    saved_ms = unread * costs.read_token_ms
    reading_ms = costs.read_ms(unread)
    asked = min(costs.fires * reading_ms / costs.draft_ms, 1.0)  # chance of a question in that time
    wrong = min(costs.risk / max(costs.fires, _LEAST_RISK), 1.0)  # chance that it finds an override
    delay_ms = asked * wrong * reading_ms / 2
    return saved_ms * max(unread * costs.risk / 2, ending) > costs.request_ms + delay_ms
