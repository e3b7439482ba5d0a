"""Public names are pinned: adding or removing one is a decision, made here."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import chaperone_common.errors
import edge_client
from edge_client import (
    ChaperoneError,
    Conversation,
    EdgeClient,
    RequestParameters,
    SyncConversation,
    SyncEdgeClient,
)

PUBLIC = """
Audited Cancellation Cancelled Capabilities ChaperoneError ChoiceLogprobs Cloud CloudLost CloudSettings
CloudShareExceeded CloudShareReached CloudTimeout CloudUnavailable Committed ConfigError Conversation Decision
DeviceSettings Drafted Drafter DraftModel EdgeClient EdgeConfig Event Failed Finished FinishReason Gate GateMismatch
GateSettings Generation GenerationParams GenerationRequest GenerationSettings GenerationStats GenerationTimeout
InternalError InvalidRequest JournalState Logprob LogprobSource Mode ModelCorrupt ModelError ModelMismatch ModelMissing
OnDeviation Origin Overloaded PartialGeneration PeerMismatch PermissionDenied Planned Planner PlannerSettings Promises
Prompt PromptInput PromptTooLong Proposal ProtocolViolation QuotaExceeded RequestParameters Retracted SamplingParams
Signal Superseded SyncConversation SyncEdgeClient TokenizerMismatch TokenLogprobs Totals Turn Unauthenticated
Unverified VersionMismatch
"""
OURS = ("chaperone_common", "edge_client")


def test_public_names() -> None:
    assert sorted(edge_client.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(edge_client, name) for name in edge_client.__all__)


def test_every_error_of_the_sdk_is_exported() -> None:
    """Not exported are errors of the commands' own output, and the one that the engine alone sees."""
    errors = [value for value in vars(chaperone_common.errors).values() if isinstance(value, type)]
    names = {error.__name__ for error in errors if issubclass(error, ChaperoneError)}
    assert names - {*edge_client.__all__} == {"OutputLost", "PrefixNotFound"}


def named_types(annotation: Any) -> Iterator[type]:
    """Return our own classes at any depth of an annotation."""
    if isinstance(annotation, type) and annotation.__module__.partition(".")[0] in OURS:
        yield annotation
    for part in typing.get_args(annotation):
        for inner in part if isinstance(part, list) else [part]:
            yield from named_types(inner)


@pytest.mark.parametrize("client", [EdgeClient, SyncEdgeClient])
def test_every_type_that_a_method_takes_or_returns_is_exported(client: type) -> None:
    methods = [getattr(client, name) for name in vars(client) if name == "__init__" or not name.startswith("_")]
    for method in methods:
        hints = typing.get_type_hints(getattr(method, "fget", None) or method)
        missing = {found.__name__ for hint in hints.values() for found in named_types(hint)} - {*edge_client.__all__}
        assert not missing, f"{client.__name__}.{getattr(method, '__name__', method)}: {missing}"


METHODS = [name for name, value in vars(EdgeClient).items() if callable(value) and not name.startswith("_")]


@pytest.mark.parametrize("method", sorted({*METHODS} - {"aclose", "token_text"}))
def test_both_clients_take_the_same_parameters(method: str) -> None:
    assert parameters_of(EdgeClient, method) == parameters_of(SyncEdgeClient, method)


def test_both_conversations_have_the_same_methods() -> None:
    mine, twin = (
        {name for name, value in vars(kind).items() if not name.startswith("_") and not isinstance(value, str)}
        for kind in (Conversation, SyncConversation)
    )
    assert mine - twin == {"release"}, "it hands over what the twin has none of"
    for method in ("generate", "stream", "regenerate", "rewind", "close"):
        assert parameters_of(Conversation, method) == parameters_of(SyncConversation, method)


def parameters_of(kind: type, method: str) -> list[tuple[str, Any, Any, str]]:
    """Return the name, kind, default and type of each parameter; a twin takes a twin."""
    return [
        (each.name, each.kind, each.default, str(each.annotation).replace("SyncConversation", "Conversation"))
        for each in inspect.signature(getattr(kind, method)).parameters.values()
    ]


@pytest.mark.parametrize("method", ["request", "stream", "generate"])
def test_parameters_are_typed(method: str) -> None:
    hints = typing.get_type_hints(getattr(EdgeClient, method))
    assert (
        hints["parameters"] == typing.Unpack[RequestParameters]
    )  # for the completion of editors and for type checkers
