"""What becomes of a gate's tokens is noted once, also where texts are taken back."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.quality.gate_outcomes import Fate, FateColumns, Witness
from chaperone_common.session import Audited, Committed, Drafted, Retracted
from chaperone_common.types import Origin, Signal
from edge_client.gate import Threshold

SURE = Signal(entropy_nats=0.1, top1_probability=0.9, margin=0.8, coupled_margin=4.0, risk=0.125)
UNSURE = replace(SURE, coupled_margin=0.5, risk=0.75)


def drafted(witness: Witness, position: int, token_id: int, signal: Signal) -> None:
    witness.follow(Drafted(position, token_id, signal, witness.fires(signal)))


def test_each_token_is_told_with_its_risk_and_its_end() -> None:
    witness = Witness(Threshold(0.5))
    drafted(witness, 10, 1, SURE)
    witness.follow(Committed(10, 1, Origin.DRAFT))
    drafted(witness, 11, 2, UNSURE)
    drafted(witness, 12, 3, SURE)  # behind a token that is overridden
    witness.follow(Retracted(11))
    witness.follow(Committed(11, 20, Origin.OVERRIDE))
    witness.follow(Committed(12, 21, Origin.BONUS))
    drafted(witness, 13, 4, UNSURE)
    witness.follow(Committed(13, 4, Origin.VERIFIED))
    witness.follow(Audited(10, 11, (10,)))
    fates = witness.fates([1, 20, 21, 4], prompt_length=10)
    assert fates == [
        Fate(0.125, 4.0, fired=False, overridden=True),
        Fate(0.75, 0.5, fired=True, overridden=True),
        None,
        Fate(0.75, 0.5, fired=True, overridden=False),
    ]


def test_a_file_keeps_fates() -> None:
    fates = [Fate(0.125, 4.0, True, False), None, Fate(1 / 3, 2.0, False, True)]
    columns = FateColumns.of(fates)
    assert (columns.fired, columns.overridden) == ("1-0", "0-1")
    assert columns.known() == [fates[0], Fate(0.3333, 2.0, False, True)]
