"""Parameters that users of other libraries know: each is refused with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from chaperone_common.errors import InvalidRequest
from edge_client import EdgeClient, EdgeConfig, RequestParameters
from edge_client.apps.http_api.errors import API_NAMES, ApiError
from edge_client.apps.http_api.requests import ChatRequest, CompletionRequest, parse
from edge_client.parameters import check_names
from edge_client.refused_names import _SENTENCES, instead_of

KNOWN = {*RequestParameters.__annotations__}
NAMES = [name for names, _ in _SENTENCES for name in names.split()]

# The name, and the words by which the SDK and the endpoint answer it; None where that one takes it.
WELL_KNOWN = [
    ("num_beam_groups", "there are no groups of beams", "there are no groups of beams"),
    ("use_beam_search", "give num_beams, and temperature 0", "give best_of, and temperature 0"),
    (
        "repetition_penalty",
        "would change the large model's distribution",
        "would change the large model's distribution",
    ),
    ("eos_token_id", "the pair's own control tokens are used", "or end a text by stop"),
    ("pad_token_id", "nothing is padded", "nothing is padded"),
    ("num_return_sequences", None, "give n for several texts, up to 8"),
    ("n", "call again for another, with another seed, or give num_beams and num_return_sequences", None),
    ("min_new_tokens", "there is no shortest length", "there is no shortest length"),
    ("max_length", "give max_new_tokens, which counts", "give max_tokens, which counts"),
    ("max_completion_tokens", "it is called max_new_tokens here", None),
    ("max_new_tokens", None, "it is called max_tokens here"),
    ("bad_words_ids", "no token can be forced or forbidden", "no token can be forced or forbidden"),
    (
        "logits_processor",
        "use temperature, top_p, top_k or min_p",
        "use temperature, top_p, chaperone.top_k or chaperone.",
    ),
    ("assistant_model", "the pair's small model is the assistant", "the pair's small model is the assistant"),
    ("typical_p", "both ends know only temperature", "both ends know only temperature"),
    ("presence_penalty", "there are no penalties", "0.5 is not supported here; there are no penalties"),
    ("frequency_penalty", "there are no penalties", "0.5 is not supported here; there are no penalties"),
    ("stop_strings", None, "it is called stop here"),
    ("do_sample", None, "give temperature: 0 is greedy"),
    ("max_time", "give timeout, in seconds", "close the connection to end a text"),
    ("stream", "call `stream` for events, or `stream_text` for text", None),
    ("response_format", "ask for the form in the prompt", "0.5 is not supported here; no form can be forced"),
]


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, words, _ in WELL_KNOWN if words is not None])
def test_the_sdk_says_what_to_do_instead(name: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_names({name: 1})
    assert caught.value.message.startswith(f"{name}: ")
    assert words in caught.value.message


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, _, words in WELL_KNOWN if words is not None])
def test_the_endpoint_says_it_in_its_own_names(name: str, words: str) -> None:
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": "x"}}], "{name}": 0.5}}'.encode()
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body, "tiny")
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unsupported_parameter", name)
    assert caught.value.message.startswith(f"{name}: ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (CompletionRequest, "messages", "send it to /v1/chat/completions"),
        (ChatRequest, "prompt", "send it to /v1/completions, or as messages"),
        (ChatRequest, "input", "send messages to /v1/chat/completions"),
    ],
)
def test_a_field_of_another_path_is_sent_there(kind: Any, name: str, words: str) -> None:
    with pytest.raises(ApiError, match=f"^{name}: {words}"):
        parse(kind, f'{{"model": "tiny", "{name}": "x"}}'.encode(), "tiny")


def test_no_sentence_is_about_a_name_that_the_sdk_takes() -> None:
    """Those of parameters that the SDK takes are for the endpoint, which does not."""
    assert len(NAMES) == len({*NAMES})
    assert {name for name in NAMES if name in KNOWN} == {"max_new_tokens", "stop_strings", "do_sample"}


@pytest.mark.parametrize("names", [{}, API_NAMES], ids=["of the SDK", "of the endpoint"])
def test_every_sentence_can_be_said(names: dict[str, str]) -> None:
    for name in NAMES:
        sentence = instead_of(name, names)
        assert sentence is not None
        assert "{" not in sentence.replace("{...}", "")
        assert len(sentence) < 200
    assert instead_of("temprature", names) is None


def test_a_name_is_refused_at_a_readable_length() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_names({"z" * 4096: 1})
    assert len(caught.value.message) < 500
    with pytest.raises(ApiError) as refused:
        parse(ChatRequest, b'{"model": "tiny", "%s": 1}' % (b"z" * 4096), "tiny")
    assert len(refused.value.message) < 500
    assert len(refused.value.param or "") <= 80


LONG = "v" * 4096
VALUES: list[dict[str, Any]] = [
    {"mode": LONG},
    {"raw": LONG},
    {"stop": [LONG]},
    {"stop": {LONG: 1}},
    {"temperature": LONG},
    {"max_new_tokens": 10**5000},
    {"max_new_tokens": -(10**5000)},
    {"logprobs": 10**5000},
    {"do_sample": False, "temperature": LONG},
    {"committed_token_ids": LONG},
    {"tools": LONG},
    {"tools": [{"type": "function", "function": {"name": "f", LONG: {1, 2}}}]},
    {"parse_special": [LONG]},
]


@pytest.mark.parametrize("given", VALUES, ids=[", ".join(given) for given in VALUES])
def test_a_value_is_refused_at_a_readable_length(tiny_pair: Any, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EdgeClient(EdgeConfig(pair="tiny")).request("the list", **given)
    assert len(caught.value.message) < 250
    assert next(reversed(given)) in caught.value.message or next(iter(given)) in caught.value.message
