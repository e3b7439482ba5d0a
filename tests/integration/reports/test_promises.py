"""The promises of a text, also of one that is resumed in another mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_common.stats import promises_hold
from cloud_supervisor.model.torch_model import TorchModel
from edge_client import Cancellation, Committed, Failed, Mode, PartialGeneration, SyncEdgeClient
from tests.support.processes.clients import SLOW, config_for
from tests.support.processes.servers import serving_in_thread

PROMPT = "the list of a number is"


@pytest.mark.parametrize(
    ("mode", "unverified", "earlier", "resumed", "expected"),
    [
        (Mode.EDGE, False, True, False, None),
        (Mode.EDGE, False, None, True, None),
        (Mode.EDGE, False, True, True, False),
        (Mode.EDGE, False, False, True, False),
        (Mode.EXACT, False, None, False, True),
        (Mode.EXACT, False, True, True, True),
        (Mode.EXACT, False, None, True, False),
        (Mode.GATED, True, True, True, False),
        (Mode.GATED, False, False, True, False),
        (Mode.CLOUD, False, True, False, True),
    ],
)
def test_promises_cover_a_text_only_if_they_cover_each_part(
    mode: Mode, unverified: bool, earlier: bool | None, resumed: bool, expected: bool | None
) -> None:
    assert promises_hold(mode, unverified=unverified, earlier=earlier, resumed=resumed) is expected


def cut_off(client: SyncEdgeClient, mode: str) -> PartialGeneration:
    """Return the partial of a text that is cancelled at its second token."""
    handle = Cancellation()
    final = 0
    for event in client.stream(PROMPT, mode=mode, max_new_tokens=40, seed=1, temperature=0.9, cancellation=handle):
        final += isinstance(event, Committed)
        if final == 2:
            handle.cancel()
        if isinstance(event, Failed):
            assert event.error.partial is not None
            return event.error.partial
    raise AssertionError("the text ended before it was cancelled")


def test_a_text_that_edge_finishes_or_begins_is_not_covered(tiny_pair: Path, target: TorchModel) -> None:
    with (
        serving_in_thread(target, tiny_pair) as (_, address),
        SyncEdgeClient(config_for(address, planner=SLOW)) as client,
    ):
        found = {}
        for first in ("exact", "edge"):
            partial = cut_off(client, first)
            assert partial.promises_hold is (True if first == "exact" else None)
            for then in ("exact", "edge"):
                stats = client.generate(partial, mode=then).stats
                found[first, then] = stats.promises_hold
                assert stats.to_json()["promises_hold"] is stats.promises_hold
    assert found == {
        ("exact", "exact"): True,
        ("exact", "edge"): False,
        ("edge", "exact"): False,
        ("edge", "edge"): None,
    }
