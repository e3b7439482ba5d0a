"""Catch of signals and gates at equal budgets of interventions: `python -m benchmarks gates --suite humaneval`.

The setting is that of Duo-LLM (arXiv 2410.10846). Along the cloud's own texts, a policy may have a share of the tokens
decided by the cloud. Tokens on which the two models agree are wasted. The policies are:

- `oracle` knows the overrides.
- Each signal, and a calibrated gate (`gate`), takes the tokens that it ranks highest.
- `pattern` takes every n-th token, and catches a share equal to the budget in expectation.
- `fitted_here` is a gate with the same features, fitted to this suite: each fifth of its texts is scored by a gate
  fitted to the others. `trees_fitted_here` is the same with boosted trees, which can combine features. Both show what
  information the features hold; nobody could have had them before the suite.
- `hidden_fitted_here`, with `--hidden-states`, is `fitted_here` with a projection of the device's last hidden states as
  further features.

An override is worth most if it changes the result. With `--rollouts`, some overrides of each text are left out: the
device's token stays, the cloud writes on, and the answer is scored. `rescues` are overrides without which a right
answer becomes a wrong one.

The texts come from `python -m benchmarks quality --read-along`, with `cloud` among its strategies.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.kit.pair_models import check_models
from benchmarks.kit.provenance import provenance
from benchmarks.kit.statistics import Indices, interval
from benchmarks.quality.exploration.explorer import Explorer, RecordingModel
from benchmarks.quality.exploration.text_tree import load_trees, save_trees
from benchmarks.quality.gate_outcomes import chosen_gate
from benchmarks.quality.hidden_states import HiddenStates
from benchmarks.quality.judged_texts import SIGNALS, Deviation, JudgedText, risks_by, sampled, written_after
from benchmarks.quality.task_suites import SUITES, Task, tasks_of
from benchmarks.strategies.gated import add_gate_option
from benchmarks.traces.record import device_model
from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import ConfigError, InvalidRequest
from chaperone_common.types import SamplingParams
from edge_client import EdgeClient, EdgeConfig
from edge_client.apps.calibration.fitting import (
    KINDS,
    REGULARISATION,
    brier_skill,
    encoder,
    figures,
    hold_out,
    judged_tokens,
)
from edge_client.gate import FEATURES
from edge_client.gate.gate_model import GateModel

BUDGETS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # shares of the tokens
HEADLINES = (0.05, 0.1, 0.2)  # budgets with intervals
ORACLE, PATTERN, GATE, FITTED, TREES = "oracle", "pattern", "gate", "fitted_here", "trees_fitted_here"
HIDDEN = "hidden_fitted_here"
TOGETHER = 32  # texts that are written at the same time
_DRAWS = 1000
_PROJECTED = 32  # dimensions of hidden states; 128 were no better on tuning prompts

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--explored", type=Path, required=True, help="explored texts: *.jsonl.gz")
    add_gate_option(parser)
    parser.add_argument("--pair", default="default")
    parser.add_argument("--rollouts", type=int, default=0, help="leave out up to N overrides of each text")
    parser.add_argument("--hidden-states", action="store_true", help="fit to the device's last hidden states, too")
    parser.add_argument("--threads", type=int, default=2)


def run(args: argparse.Namespace) -> dict[str, Any]:
    header, trees = load_trees(args.explored)
    if header.get("suite") != args.suite:
        raise ConfigError(f"{args.explored}: explored on another suite than {args.suite}; name another --explored")
    check_models(args.explored, header.get("models", {}), args.pair, remedy="name another --explored")
    tasks = [task for task in tasks_of(args.suite) if task.id in trees]
    if not tasks:
        raise ConfigError(f"{args.explored}: none of the tasks of {args.suite}; explore them first")
    if args.rollouts and tasks[0].score is None:
        raise ConfigError(f"--rollouts: there are no right answers in {args.suite}; leave it out")
    max_new_tokens = int(header["max_new_tokens"])
    client = EdgeClient(EdgeConfig(pair=args.pair))
    try:
        gate = chosen_gate(args.gate, client.manifest)
        eos_token_ids = client.manifest.eos_token_ids
        texts = [JudgedText.of(trees[task.id], eos_token_ids, max_new_tokens) for task in tasks]
        scores = _scores(texts, gate, client.token_text, _hidden_states(args, texts) if args.hidden_states else None)
        rescues = None
        if args.rollouts:
            left_out = sampled(texts, args.rollouts)
            answers = _roll_out(args, header, left_out, texts, client)
            save_trees(args.explored, header, trees.values())
            rescues = _rescues(tasks, texts, answers, client.tokenizer.decode)
    finally:
        asyncio.run(client.aclose())
    return {
        "benchmark": "gates",
        **provenance(),
        "settings": {
            "suite": args.suite,
            "pair": args.pair,
            "texts": len(texts),
            "gate": None if gate is None else gate.card.data.model_dump(),
            "rollouts": args.rollouts,
            "hidden_states": args.hidden_states,
            "max_new_tokens": max_new_tokens,
        },
        "summary": _summary(texts, scores, rescues),
    }


def _scores(
    texts: Sequence[JudgedText],
    gate: GateModel | None,
    read: Callable[[int], str],
    hidden_states: NDArray[np.float32] | None,
) -> dict[str, list[Floats]]:
    """Return the scores by policy and text, [tokens]: the higher, the sooner the cloud is asked.

    `hidden_states` are those of all texts, one after the other, [tokens, width].
    """
    scores = {name: [np.array([of(one) for one in text.proposals]) for text in texts] for name, of in SIGNALS.items()}
    features = [text.features(read) for text in texts]
    if gate is not None:
        scores[GATE] = [risks_by(gate, rows) for rows in features]
    tokens = judged_tokens(features, [[bool(one) for one in text.overridden] for text in texts])
    fitted = [(FITTED, tokens, None), (TREES, tokens, _trees)]
    if hidden_states is not None:
        with_states = replace(tokens, features=np.hstack([tokens.features, hidden_states]))
        fitted.append((HIDDEN, with_states, _with_hidden_states))
    for name, known, new_classifier in fitted:
        try:
            _, held_out = hold_out(known, new_classifier)
        except InvalidRequest as error:
            print(f"{name} is left out: {error}", flush=True)
        else:
            scores[name] = np.split(held_out, np.cumsum([len(rows) for rows in features])[:-1])
    return scores


def _trees() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=40, categorical_features=[*KINDS], random_state=0
    )


def _hidden_states(args: argparse.Namespace, texts: Sequence[JudgedText]) -> NDArray[np.float32]:
    model = HiddenStates(pair_folder(args.pair, "edge"), threads=args.threads)
    return np.concatenate([model.before(text.token_ids, text.tree.prompt) for text in texts])


def _with_hidden_states() -> Pipeline:
    """Return a gate's own classifier, with a projection of the hidden states that follow the features."""
    projection = make_pipeline(StandardScaler(), PCA(_PROJECTED, whiten=True, random_state=0))
    columns = ColumnTransformer(
        [
            ("features", encoder(), list(range(len(FEATURES)))),
            ("hidden", projection, slice(len(FEATURES), None)),
        ]
    )
    return make_pipeline(columns, LogisticRegression(C=REGULARISATION, max_iter=2000))


# --- Overrides that are left out -------------------------------------------------------------------------------------


def _roll_out(
    args: argparse.Namespace,
    header: Mapping[str, Any],
    left_out: Sequence[Deviation],
    texts: Sequence[JudgedText],
    client: EdgeClient,
) -> dict[Deviation, tuple[int, ...]]:
    """Return the texts without some overrides, written by the cloud's model with the dtype of the exploration."""
    folder = pair_folder(args.pair, "cloud")
    manifest = load_manifest(folder, role="cloud")
    cloud = RecordingModel.of_manifest(folder, manifest, dtype=header["dtype"], threads=args.threads)
    device = device_model(args.pair, client.manifest)
    answers: dict[Deviation, tuple[int, ...]] = {}
    explorer = Explorer(device, cloud, SamplingParams())
    for first in range(0, len(texts), TOGETHER):
        group = range(first, min(first + TOGETHER, len(texts)))
        answers |= written_after(
            [one for one in left_out if one.text in group],
            texts,
            explorer,
            eos_token_ids=client.manifest.eos_token_ids,
            max_new_tokens=int(header["max_new_tokens"]),
        )
        for index in group:
            explorer.leave(texts[index].tree)
        print(f"{len(answers)} of {len(left_out)} overrides were left out", flush=True)
    device.close()
    return answers


def _rescues(
    tasks: Sequence[Task],
    texts: Sequence[JudgedText],
    answers: Mapping[Deviation, tuple[int, ...]],
    decode: Callable[[Sequence[int]], str],
) -> dict[Deviation, int]:
    """Return, for each override left out: 1 if the answer is right only with it, -1 if only without it, else 0."""
    own = [_passes(task, decode(text.token_ids)) for task, text in zip(tasks, texts, strict=True)]
    return {one: own[one.text] - _passes(tasks[one.text], decode(answer)) for one, answer in answers.items()}


def _passes(task: Task, answer: str) -> int:
    assert task.score is not None, "checked before anything was written"
    return int(task.score(answer).passed)


# --- What it comes to ------------------------------------------------------------------------------------------------


def _summary(
    texts: Sequence[JudgedText], scores: Mapping[str, list[Floats]], rescues: Mapping[Deviation, int] | None
) -> dict[str, Any]:
    overridden = [text.overridden for text in texts]
    overrides, margins = np.concatenate(overridden), -np.concatenate(scores["coupled_margin"])
    rate = float(overrides.mean())
    summary: dict[str, Any] = {
        "tokens": len(overrides),
        "override_rate": round(rate, 5),
        "budgets": BUDGETS,
        "catch": {
            ORACLE: [round(_oracle_at(budget, overrides), 4) for budget in BUDGETS],
            PATTERN: [*BUDGETS],
            **{name: _curve(of_texts, overridden) for name, of_texts in scores.items()},
        },
        "headlines": {f"{budget:g}": _headline(budget, scores, overridden) for budget in HEADLINES},
        "risk": {
            name: {
                **figures(np.concatenate(scores[name]), overrides, margins),
                "brier_skill_95": _skill_interval(scores[name], overridden),
            }
            for name in (GATE, FITTED, TREES, HIDDEN)
            if name in scores
        },
    }
    if rescues is not None:
        summary["rescues"] = rescue_curves(texts, rescues, scores)
    return summary


def _curve(scores: Sequence[Floats], overridden: Sequence[Bools]) -> list[float]:
    return [round(catch_at(budget, np.concatenate(scores), np.concatenate(overridden)), 4) for budget in BUDGETS]


def catch_at(budget: float, scores: Floats, overridden: Bools) -> float:
    """Return the share of overrides among the tokens with the highest scores; `budget` is the share of tokens taken."""
    taken = np.argsort(-scores, kind="stable")[: round(budget * len(scores))]
    return float(overridden[taken].sum() / max(int(overridden.sum()), 1))


def _oracle_at(budget: float, overridden: Bools) -> float:
    """Return the catch of the oracle with a share of all tokens."""
    return catch_at(budget, overridden.astype(np.float64), overridden)


def _headline(budget: float, scores: Mapping[str, list[Floats]], overridden: Sequence[Bools]) -> dict[str, Any]:
    """Return the gate's share of the oracle's catch, and its lead over the best single signal.

    Intervals are 95% bootstraps over texts. The best signal is the best on all of them.
    """
    if GATE not in scores:
        return {}
    everything = np.concatenate(overridden)
    caught = {name: catch_at(budget, np.concatenate(scores[name]), everything) for name in scores}
    best = max(SIGNALS, key=lambda name: caught[name])

    def caught_in(drawn: Indices, name: str) -> float:
        return catch_at(budget, _joined(scores[name], drawn), _joined(overridden, drawn))

    def share(drawn: Indices) -> float:
        return caught_in(drawn, GATE) / max(_oracle_at(budget, _joined(overridden, drawn)), 1e-9)

    def lead(drawn: Indices) -> float:
        return caught_in(drawn, GATE) - caught_in(drawn, best)

    return {
        "gate": round(caught[GATE], 4),
        "share_of_oracle": round(caught[GATE] / max(_oracle_at(budget, everything), 1e-9), 4),
        "share_of_oracle_95": interval(len(overridden), share, draws=_DRAWS),
        "best_signal": best,
        "lead_over_best_signal": round(caught[GATE] - caught[best], 4),
        "lead_over_best_signal_95": interval(len(overridden), lead, draws=_DRAWS),
    }


def _skill_interval(risks: Sequence[Floats], overridden: Sequence[Bools]) -> list[float] | None:
    """Return the 95% interval of the Brier skill over texts."""

    def skill(drawn: Indices) -> float | None:
        """Return None where all tokens of a draw are overridden, or none: the skill is then not defined."""
        overrides = _joined(overridden, drawn)
        return brier_skill(_joined(risks, drawn), overrides) if 0 < overrides.sum() < len(overrides) else None

    return interval(len(overridden), skill, draws=_DRAWS)


def _joined(of_texts: Sequence[NDArray[Any]], drawn: Indices) -> NDArray[Any]:
    return np.concatenate([of_texts[index] for index in drawn])


def rescue_curves(
    texts: Sequence[JudgedText], rescues: Mapping[Deviation, int], scores: Mapping[str, list[Floats]]
) -> dict[str, Any]:
    """Return the share of decisive overrides that each budget catches; null if no override is decisive.

    Only some overrides of a text with many were left out, so each one has the weight of several. The oracle knows the
    decisive ones.
    """
    drawn = Counter(one.text for one in rescues)
    begins = np.cumsum([0, *(len(text.token_ids) for text in texts)])
    matters = np.array([gain > 0 for gain in rescues.values()], np.bool_)
    weights = np.array([int(texts[one.text].overridden.sum()) / drawn[one.text] for one in rescues])
    places = np.array([begins[one.text] + one.place for one in rescues], np.int64)
    result = {
        "left_out": len(rescues),
        "rescues": int(matters.sum()),
        "harms": sum(gain < 0 for gain in rescues.values()),
    }
    if not 0 < result["rescues"] < len(rescues):
        return {**result, "caught": None, "auc_among_overrides": None}
    needed = float(weights[matters].sum())
    all_scores = {name: np.concatenate(of_texts) for name, of_texts in scores.items()}
    return {
        **result,
        "caught": {
            ORACLE: [round(min(budget * int(begins[-1]) / needed, 1.0), 4) for budget in BUDGETS],
            PATTERN: [*BUDGETS],
            **{name: _caught(places[matters], weights[matters], ranked) for name, ranked in all_scores.items()},
        },
        "auc_among_overrides": {
            name: round(float(roc_auc_score(matters, ranked[places], sample_weight=weights)), 4)
            for name, ranked in all_scores.items()
        },
    }


def _caught(places: NDArray[np.int64], weights: Floats, scores: Floats) -> list[float]:
    """Return, by budget, the share of the weight of some places that is among the tokens with the highest scores."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    taken = [weights[ranks[places] < round(budget * len(scores))].sum() for budget in BUDGETS]
    return [round(float(weight / weights.sum()), 4) for weight in taken]
