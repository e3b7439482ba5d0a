"""Features of a token, from its own signals and the text before it."""

from __future__ import annotations

import math

import pytest

from chaperone_common.types import Signal
from edge_client.gate.features import FEATURES, Features, TokenKind, kind_of

TEXTS = {1: "def", 2: " f", 3: "(x):", 4: "\n", 5: "    ", 6: "42", 7: "```", 8: "Über"}
SURE = Signal(0.1, 0.97, 0.95, 6.0, 0.0, 0.3)
DOUBT = Signal(1.6, 0.4, 0.1, 0.2, 0.5, 1.1)


def read(token_id: int) -> str:
    return TEXTS[token_id]


def named(features: Features, token_id: int = 1, runner_up: int = 2, signal: Signal = DOUBT) -> dict[str, float]:
    return dict(zip(FEATURES, features.of(token_id, runner_up, signal), strict=True))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((" word", TokenKind.WORD), ("Word", TokenKind.WORD), ("_x", TokenKind.PIECE), ("ing", TokenKind.PIECE)),
        *(("7", TokenKind.NUMBER), (" 12", TokenKind.NUMBER), ("():", TokenKind.OPERATOR), (" +", TokenKind.OPERATOR)),
        *(("   ", TokenKind.SPACE), ("\n\n", TokenKind.NEWLINE), (":\n", TokenKind.NEWLINE)),
        *(("", TokenKind.SPECIAL), ("\ufffd", TokenKind.SPECIAL)),
    ],
)
def test_kinds(text: str, kind: TokenKind) -> None:
    assert kind_of(text) is kind


def test_the_first_token_has_no_history() -> None:
    first = named(Features(read))
    assert first["log_coupled_margin"] == pytest.approx(math.log(0.2))
    assert first["log_doubted"] == pytest.approx(math.log(0.6))
    assert first["entropy_rise"] == first["position"] == first["line_position"] == first["fenced"] == 0
    assert first["mean_entropy_4"] == first["mean_entropy_16"] == 1.6
    assert (first["kind"], first["runner_up_kind"], first["kind_before"]) == (
        *(TokenKind.PIECE, TokenKind.WORD),
        TokenKind.NEWLINE,
    )


def test_features_depend_on_the_text_before() -> None:
    features = Features(read)
    for token_id, signal in ((1, SURE), (2, DOUBT), (3, SURE), (4, SURE), (5, None), (6, DOUBT)):
        features.append(token_id, signal)
    values = named(features)
    assert values["position"] == pytest.approx(math.log1p(6))
    assert values["line_position"] == pytest.approx(math.log1p(2))
    assert values["mean_entropy_4"] == pytest.approx((0.1 + 0.1 + 0.0 + 1.6) / 4), "the cloud's token counts as sure"
    assert values["mean_entropy_16"] == pytest.approx((0.1 + 1.6 + 0.1 + 0.1 + 0.0 + 1.6) / 6)
    assert values["entropy_rise"] == pytest.approx(1.6 - values["mean_entropy_16"])
    assert values["log_entropy_before"] == pytest.approx(math.log(1.6))
    assert values["kind_before"] == TokenKind.NUMBER


def test_fences_open_and_close() -> None:
    features, fenced = Features(read), []
    for token_id in (1, 7, 4, 1, 7, 1):
        features.append(token_id, SURE)
        fenced.append(named(features)["fenced"])
    assert fenced == [0, 1, 1, 1, 0, 0]


def test_cut_text_leaves_no_trace() -> None:
    features, straight = Features(read), Features(read)
    for token_id in (1, 2):
        features.append(token_id, SURE)
        straight.append(token_id, SURE)
    for token_id in (7, 4, 6):
        features.append(token_id, DOUBT)
    features.cut(2)
    assert len(features) == 2
    assert named(features) == named(straight)
