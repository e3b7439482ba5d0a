"""Public names are pinned: adding or removing one is a decision, made here."""

from __future__ import annotations

import inspect
import re
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
Audited BeamParams BeamText Beams Cancellation Cancelled Capabilities ChaperoneError ChoiceLogprobs Cloud CloudLost
CloudSettings CloudShareExceeded CloudShareReached CloudTimeout CloudUnavailable Committed ConfigError Conversation
Decision DeviceSettings Drafted Drafter DraftModel EdgeClient EdgeConfig Event Failed Finished FinishReason Gate
GateMismatch GateSettings Generation GenerationParams GenerationRequest GenerationSettings GenerationStats
GenerationTimeout InternalError InvalidRequest JournalState Logprob LogprobSource Message Mode ModelCorrupt ModelError
ModelMismatch ModelMissing OnDeviation OnOverflow Origin Overloaded PartialBeams PartialGeneration PeerMismatch
PermissionDenied Planned Planner PlannerSettings Promises Prompt PromptInput PromptTooLong Proposal ProtocolViolation
pull_model PulledModel PullProgress QuotaExceeded RequestParameters Retracted SamplingParams Signal Streamer Superseded
SyncConversation SyncEdgeClient TokenizerMismatch TokenLogprobs Totals Turn Unauthenticated Unverified VersionMismatch
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


@pytest.mark.parametrize("kind", [EdgeClient, SyncEdgeClient, Conversation, SyncConversation])
def test_every_name_of_ours_in_a_public_signature_is_exported(kind: type) -> None:
    """Names of aliases are gone when hints are evaluated, so the text of the annotations is read."""
    ours = {
        name
        for module in (
            edge_client.client,
            edge_client.sync_client,
            edge_client.conversation.chat,
            edge_client.parameters,
        )
        for name, value in vars(module).items()
        if getattr(value, "__module__", "").partition(".")[0] in OURS or name in ("Message", "OnOverflow", "Prompt")
    }
    for name in public_names(kind) - {"release"}:  # it is for the other conversations of the client
        method = getattr(kind, name)
        annotations = (getattr(method, "fget", None) or method).__annotations__
        named = {word for text in annotations.values() for word in re.findall(r"\w+", str(text))}
        assert named & ours <= {*edge_client.__all__}, f"{kind.__name__}.{name}"


# What one kind has and its twin lacks, and why.
LACKING = {
    (EdgeClient, SyncEdgeClient): {
        "aclose",  # `close`
    },
    (SyncEdgeClient, EdgeClient): {"close"},  # `aclose`
    (Conversation, SyncConversation): {"release"},  # it hands over what the twin has none of
    (SyncConversation, Conversation): set(),
}
NOT_BY_A_TWIN = {"cloud", "drafter"}  # arguments of `EdgeClient` whose objects belong to an event loop


def public_names(kind: type) -> set[str]:
    """Return the names of methods, class methods and properties."""
    found = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    return {name for name, value in found.items() if callable(value) or isinstance(value, property | classmethod)}


@pytest.mark.parametrize(("kind", "twin"), LACKING)
def test_twins_have_the_same_methods(kind: type, twin: type) -> None:
    assert public_names(kind) - public_names(twin) == LACKING[kind, twin]


def test_twins_have_the_same_attributes() -> None:
    mine = EdgeClient.__annotations__
    assert mine == SyncEdgeClient.__annotations__
    assert {*mine} == {"config", "manifest", "tokenizer"}


COMMON = [
    (kind, twin, name)
    for kind, twin in ((EdgeClient, SyncEdgeClient), (Conversation, SyncConversation))
    for name in sorted(public_names(kind) & public_names(twin))
]


@pytest.mark.parametrize(("kind", "twin", "name"), COMMON)
def test_twins_take_the_same_parameters(kind: type, twin: type, name: str) -> None:
    assert isinstance(vars(kind)[name], property) == isinstance(vars(twin)[name], property)
    if not isinstance(vars(kind)[name], property):
        assert parameters_of(kind, name) == parameters_of(twin, name)


def test_twins_are_made_of_the_same_arguments() -> None:
    mine = [each for each in parameters_of(EdgeClient, "__init__") if each[0] not in NOT_BY_A_TWIN]
    assert mine == parameters_of(SyncEdgeClient, "__init__")


def parameters_of(kind: type, method: str) -> list[tuple[str, Any, Any, str]]:
    """Return the name, kind, default and type of each parameter; a twin takes a twin."""
    return [
        (each.name, each.kind, each.default, str(each.annotation).replace("SyncConversation", "Conversation"))
        for each in inspect.signature(getattr(kind, method)).parameters.values()
    ]


@pytest.mark.parametrize("method", ["request", "stream", "stream_text", "generate"])
def test_parameters_are_typed(method: str) -> None:
    hints = typing.get_type_hints(getattr(EdgeClient, method))
    assert (
        hints["parameters"] == typing.Unpack[RequestParameters]
    )  # for the completion of editors and for type checkers
