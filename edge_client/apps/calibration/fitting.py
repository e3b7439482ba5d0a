"""From judged texts to a gate: scikit-learn fits, skl2onnx exports; the only file that imports them.

Neither is needed on the device that uses the gate; install the extra `calibrate` where gates are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from chaperone_common.errors import InvalidRequest
from edge_client.gate import FEATURES, FEATURES_VERSION, TokenKind
from edge_client.gate.gate_model import CARD, GateCard, GateData, GatedModel

LEAST_OVERRIDES = 40  # fewer say nothing about which tokens they fall on
FOLDS = 5
BINS = 15  # of the calibration error, equally many tokens in each
REGULARISATION = 0.3  # C of scikit-learn; of little influence
KINDS = tuple(FEATURES.index(name) for name in ("kind", "kind_before", "runner_up_kind"))  # categories, no numbers
LEAST, MOST = 1e-5, 0.98  # of a risk
PACKAGES = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class JudgedTokens:
    """The tokens of some texts: features, and whether the cloud chose another one there."""

    features: NDArray[np.float32]  # [tokens, features]
    overridden: NDArray[np.bool_]  # [tokens]
    texts: NDArray[np.int64]  # [tokens], the text that each belongs to


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted classifier, the curve from its score to a risk, and what it said of tokens that it had not seen."""

    classifier: Any
    scores: Floats  # of the curve's knots
    risks: Floats
    held_out: Floats  # [tokens], the risk of each by a classifier that had not seen its text


def fit(tokens: JudgedTokens) -> Fit:
    """Fit to all texts, with the curve that calibrates what was held out; raises InvalidRequest as `hold_out` does."""
    knots, risks = hold_out(tokens)
    return Fit(_classifier().fit(tokens.features, tokens.overridden), *knots, risks)


def hold_out(
    tokens: JudgedTokens, new_classifier: Callable[[], Any] | None = None
) -> tuple[tuple[Floats, Floats], Floats]:
    """Fit five times to four fifths of the texts; the curve over the scores of the rest, and their risks, [tokens].

    `new_classifier` makes one of scikit-learn's; None is the kind that gates are made of. Raises InvalidRequest for too
    few texts, or too few tokens of either fate.
    """
    texts, overrides = len(np.unique(tokens.texts)), int(tokens.overridden.sum())
    count = len(tokens.overridden)
    if texts < FOLDS or not LEAST_OVERRIDES <= overrides <= count - LEAST_OVERRIDES:
        raise InvalidRequest(
            f"prompts: {texts} texts with {overrides} of {count} tokens overridden; a gate needs at least {FOLDS} "
            f"texts, {LEAST_OVERRIDES} tokens that were overridden and as many that were not. Give more prompts, or "
            "longer texts"
        )
    made = new_classifier or _classifier
    scores = np.empty(len(tokens.overridden))
    for seen, unseen in GroupKFold(FOLDS).split(tokens.features, groups=tokens.texts):
        if not 0 < int(tokens.overridden[seen].sum()) < len(seen):
            raise InvalidRequest("prompts: all overrides are in a few texts; give more texts")
        classifier = made().fit(tokens.features[seen], tokens.overridden[seen])
        scores[unseen] = classifier.predict_proba(tokens.features[unseen])[:, 1]
    knots = curve(scores, tokens.overridden)
    return knots, np.interp(scores, *knots)


def curve(scores: Floats, overridden: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Isotonic regression of fate on score, as knots in the middle of its steps, so that no two scores tie."""
    steps = IsotonicRegression(out_of_bounds="clip").fit_transform(scores, overridden)
    levels = np.unique(steps)
    middles = np.array([float(scores[steps == level].mean()) for level in levels])
    first, last = min(0.0, middles[0] - 1e-6), max(1.0, middles[-1] + 1e-6)
    knots = np.array([first, *middles, last])
    risks = np.array([0.0, *levels, max(levels[-1], MOST)])
    return knots, np.clip(risks, LEAST, MOST)


def figures(risks: Floats, overridden: NDArray[np.bool_], coupled_margins: Floats) -> dict[str, float]:
    """Return measures of risks: order (AUC), calibration (ECE, over bins of equal size), and both (Brier)."""
    errors = [abs(risk - true) * tokens for risk, true, tokens in reliability(risks, overridden)]
    return {
        "override_rate": round(float(overridden.mean()), 5),
        "auc": round(float(roc_auc_score(overridden, risks)), 5),
        "auc_coupled_margin": round(float(roc_auc_score(overridden, -coupled_margins)), 5),
        "brier": round(_brier(risks, overridden), 6),
        "brier_skill": round(brier_skill(risks, overridden), 5),
        "expected_calibration_error": round(sum(errors) / len(risks), 5),
    }


def brier_skill(risks: Floats, overridden: NDArray[np.bool_]) -> float:
    """1 for who knows all fates, 0 for who knows no more than how many tokens are overridden, [tokens]."""
    base = float(overridden.mean())
    return 1.0 - _brier(risks, overridden) / (base * (1.0 - base))


def _brier(risks: Floats, overridden: NDArray[np.bool_]) -> float:
    return float(np.mean((risks - overridden) ** 2))


def reliability(risks: Floats, overridden: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Mean risk, share of overrides and number of tokens, in bins of equally many tokens by rising risk."""
    bins = np.array_split(np.argsort(risks, kind="stable"), BINS)
    return [(float(risks[one].mean()), float(overridden[one].mean()), len(one)) for one in bins if len(one)]


def export(
    fitted: Fit, tokens: JudgedTokens, *, edge: GatedModel, cloud: GatedModel, data: GateData, made_at: str
) -> bytes:
    """Return the gate as an ONNX file with its card."""
    margins = np.exp(tokens.features[:, FEATURES.index("log_coupled_margin")].astype(np.float64))
    card = GateCard(
        features_version=FEATURES_VERSION,
        edge=edge,
        cloud=cloud,
        data=data,
        made_at=made_at,
        versions={package: version(package) for package in PACKAGES},
        figures=figures(fitted.held_out, tokens.overridden, margins),
        scores=tuple(float(f"{score:.7g}") for score in fitted.scores),
        risks=tuple(float(f"{risk:.5g}") for risk in fitted.risks),
        held_out_risks=tuple(float(f"{risk:.4g}") for risk in fitted.held_out),
        held_out_overrides=tuple(int(index) for index in np.flatnonzero(tokens.overridden)),
    )
    graph = to_onnx(fitted.classifier, tokens.features[:1], options={"zipmap": False})
    entry = graph.metadata_props.add()
    entry.key, entry.value = CARD, card.model_dump_json()
    onnx.checker.check_model(graph)
    exported: bytes = graph.SerializeToString()
    return exported


def judged_tokens(features: Sequence[Sequence[Sequence[float]]], overridden: Sequence[Sequence[bool]]) -> JudgedTokens:
    """Put texts together: of each, the features of its tokens and their fates."""
    return JudgedTokens(
        np.array([row for text in features for row in text], np.float32).reshape(-1, len(FEATURES)),
        np.array([fate for text in overridden for fate in text], np.bool_),
        np.repeat(np.arange(len(features)), [len(text) for text in features]),
    )


def encoder() -> ColumnTransformer:
    """Features, which are mostly logarithms, as standardised numbers, and kinds of tokens as categories."""
    numbers = [index for index in range(len(FEATURES)) if index not in KINDS]
    categories = [[float(kind) for kind in TokenKind]] * len(KINDS)
    return ColumnTransformer(
        [
            ("numbers", StandardScaler(), numbers),
            ("kinds", OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False), [*KINDS]),
        ]
    )


def _classifier() -> Pipeline:
    """Logistic regression; boosted trees and forests ranked the tokens of the default pair no better."""
    return make_pipeline(encoder(), LogisticRegression(C=REGULARISATION, max_iter=2000))
