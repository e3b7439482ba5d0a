"""Beams, between values and protobuf."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate, pairwise

from chaperone_common.beams.draft_row import DraftRow
from chaperone_common.beams.forest import MAX_FOREST_DEPTH, MAX_FOREST_WIDTH, Draw, Forest
from chaperone_common.beams.frames import BeamSettings, BeamStep, BeamVerdict, ForestFrame, RunningBeam
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.beams.progress import MAX_KEPT
from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import FrameLimits
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.ranges import MAX_BEAMS
from chaperone_common.wire.checks import bounded, check_count

_MAX_ROWS = MAX_BEAMS + MAX_FOREST_DEPTH * MAX_FOREST_WIDTH
MAX_FOREST_BYTES = 1 << 17  # more than a forest of the largest width and depth has with rows of 64 tokens


def settings_message(settings: BeamSettings | None) -> pb.Beams | None:
    """Return the part of an Open that asks for beams."""
    if settings is None:
        return None
    return pb.Beams(
        num_beams=settings.num_beams,
        width_threshold=settings.width_threshold,
        least_width=settings.least_width,
        one_cache=settings.one_cache,
        length_penalty=settings.length_penalty if settings.length_penalty != 1 else None,
        early_stopping=settings.early_stopping,
        running=[
            pb.RunningBeam(token_ids=beam.token_ids, log_p=beam.log_p, logprob=beam.logprob)
            for beam in settings.running
        ],
        finished=[pb.FinishedBeam(token_ids=beam.token_ids, logprob=beam.logprob) for beam in settings.finished],
        stops=settings.stops,
    )


def parse_settings(message: pb.Open, limits: FrameLimits) -> BeamSettings | None:
    """Return what an Open asks for; raises InvalidRequest for too many tokens."""
    if not message.HasField("beams"):
        return None
    beams = message.beams
    check_count("beams.running", len(beams.running) + len(beams.finished), 2 * MAX_BEAMS, "resume from fewer beams")
    for field, texts in (("beams.running", beams.running), ("beams.finished", beams.finished)):
        for beam in texts:  # all of them together are bounded as bytes of a message
            check_count(field, len(beam.token_ids), limits.max_text_tokens, "resume from less text")
    return BeamSettings(
        num_beams=beams.num_beams,
        width_threshold=beams.width_threshold if beams.HasField("width_threshold") else None,
        least_width=beams.least_width or 1,
        one_cache=beams.one_cache,
        length_penalty=beams.length_penalty if beams.HasField("length_penalty") else 1.0,
        early_stopping=beams.early_stopping,
        running=tuple(RunningBeam(tuple(beam.token_ids), beam.log_p, beam.logprob) for beam in beams.running),
        finished=tuple(Hypothesis(tuple(beam.token_ids), beam.logprob, "stop") for beam in beams.finished),
        stops=beams.stops,
    )


def forest_message(frame: ForestFrame) -> pb.Forest:
    """Return the message of a forest."""
    forest = frame.forest
    return pb.Forest(
        round=frame.round,
        token_ids=[token_id for row in forest.rows for token_id in row.token_ids],
        steps=b"".join(row.steps for row in forest.rows),
        row_lengths=bytes(map(len, forest.rows)),
        draws=bytes(number for layer in forest.layers for draw in layer for number in draw),
        layer_draws=bytes(map(len, forest.layers)),
        dropped=frame.dropped,
        copies=frame.copies,
        stopped=forest.stopped,
        layers=frame.layers if frame.layers > 1 else 0,
        deadline_ms=frame.deadline_ms,
    )


def parse_forest(message: pb.Forest) -> ForestFrame:
    """Return the frame of a message; raises ProtocolViolation.

    Whether the draws fit to the running beams, the session finds out.
    """
    if len(message.row_lengths) > _MAX_ROWS or sum(message.row_lengths) != len(message.token_ids):
        raise ProtocolViolation(
            f"row_lengths: {len(message.row_lengths)} rows of {sum(message.row_lengths)} tokens, and there are "
            f"{len(message.token_ids)}; send up to {_MAX_ROWS} rows, and the length of each"
        )
    if len(message.steps) != len(message.token_ids):
        raise ProtocolViolation(f"steps: {len(message.steps)} bytes for {len(message.token_ids)} tokens")
    if 2 * sum(message.layer_draws) != len(message.draws) or len(message.layer_draws) > MAX_FOREST_DEPTH:
        raise ProtocolViolation(
            f"draws: {len(message.draws)} bytes for {sum(message.layer_draws)} draws in {len(message.layer_draws)} "
            f"layers; send two for each draw, and up to {MAX_FOREST_DEPTH} layers"
        )
    dropped = bounded("dropped", message.dropped, MAX_KEPT * MAX_BEAMS)
    copies = bounded("copies", message.copies, 2 * MAX_BEAMS)
    stopped = bounded("stopped", message.stopped, MAX_FOREST_DEPTH * MAX_FOREST_WIDTH)
    draws = [Draw(parent, place) for parent, place in zip(message.draws[::2], message.draws[1::2], strict=True)]
    try:
        rows = tuple(
            DraftRow(tuple(message.token_ids[start:end]), message.steps[start:end])
            for start, end in _pieces(message.row_lengths)
        )
    except ValueError as error:
        raise ProtocolViolation(f"forest: {error}") from None
    layers = tuple(tuple(draws[start:end]) for start, end in _pieces(message.layer_draws))
    forest = Forest(rows, layers, stopped)
    return ForestFrame(message.round, forest, dropped, copies, message.layers or 1, message.deadline_ms)


def verdict_message(verdict: BeamVerdict) -> pb.BeamVerdict:
    """Return the message of a verdict."""
    return pb.BeamVerdict(
        round=verdict.round,
        running=[_step(step) for step in verdict.running],
        finished=[_step(step) for step in verdict.finished],
        accepted=verdict.accepted,
        tested=verdict.tested,
        queue_us=verdict.queue_us,
        compute_us=verdict.compute_us,
        live=bytes(verdict.live),
        needed=bytes(verdict.needed),
    )


def parse_verdict(message: pb.BeamVerdict) -> BeamVerdict:
    """Return the verdict of a message; raises ProtocolViolation."""
    most = MAX_BEAMS * (MAX_FOREST_DEPTH + 1)
    if len(message.running) > MAX_KEPT * MAX_BEAMS or len(message.finished) > most:
        raise ProtocolViolation(
            f"running: {len(message.running)} beams, and {len(message.finished)} finished ones; at most "
            f"{MAX_KEPT * MAX_BEAMS} and {most} are allowed; use another cloud"
        )
    live, needed = (bounded(name, getattr(message, name), MAX_FOREST_DEPTH) for name in ("live", "needed"))
    return BeamVerdict(
        message.round,
        tuple(map(_parse_step, message.running)),
        tuple(map(_parse_step, message.finished)),
        message.accepted,
        message.tested,
        message.queue_us,
        message.compute_us,
        live,
        needed,
    )


def _step(step: BeamStep) -> pb.BeamStep:
    return pb.BeamStep(node=step.node, token_id=step.token_id, log_p=step.log_p, logprob=step.logprob)


def _parse_step(message: pb.BeamStep) -> BeamStep:
    if not (math.isfinite(message.log_p) and math.isfinite(message.logprob)):
        raise ProtocolViolation(f"log_p: {message.log_p} and {message.logprob} are not finite; use another cloud")
    token_id = message.token_id if message.HasField("token_id") else None
    return BeamStep(message.node, token_id, message.log_p, message.logprob)


def _pieces(lengths: Iterable[int]) -> Iterable[tuple[int, int]]:
    """Return start and end of pieces that follow each other."""
    return pairwise(accumulate(lengths, initial=0))
