"""Chats to prompts: rendering as in transformers, refusals and their messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chaperone_common.artefacts.manifest import load_manifest
from chaperone_common.errors import InvalidRequest, ModelCorrupt
from edge_client.text import ChatTemplate, Tokenizer
from tests.support.device.text import CALL, USER, WEATHER, template_of

CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "naïve 語 🙂\n\n"}],
    [
        {"role": "user", "content": "<b>1 & 2</b>"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": ""},
    ],
]
TRICKY_TEMPLATES = {
    "blocks": "{% for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}[{{ m.role }}]\n  {% endif %}\n"
    "{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}\n{% if add_generation_prompt %}>{% endif %}",
    "json": "{{ messages | tojson }}\n{{ messages | tojson(indent=2) }}"
    "{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n{% endfor %}x",
    "undefined": "{{ messages }}{{ tools }}{{ documents }}"
    "{% if not tools is defined or tools is none %}none{% endif %}{{ nothing }}",
    "clock": "{{ messages }}{{ strftime_now('%Y') }}",
}


@pytest.fixture(scope="module")
def folder(tiny_pair: Path) -> Path:
    return tiny_pair / "edge"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, load_manifest(folder, role="edge"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


@pytest.mark.parametrize("chat", CHATS)
def test_the_models_template_renders_as_transformers(
    folder: Path, tokenizer: Tokenizer, reference: Any, chat: list[dict[str, str]]
) -> None:
    text = ChatTemplate.load(folder, tokenizer).render(chat)
    assert text == reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert list(tokenizer.encode(text)) == reference.apply_chat_template(chat, add_generation_prompt=True)


@pytest.mark.parametrize("name", TRICKY_TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_other_templates_render_as_transformers(name: str, chat: list[dict[str, str]], reference: Any) -> None:
    ours = ChatTemplate(TRICKY_TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"}).render(chat)
    theirs = reference.apply_chat_template(
        chat,
        chat_template=TRICKY_TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert ours == theirs


CALLING = {"role": "assistant", "content": None}


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "messages: expected a list of at least one message"),
        ("hello", "messages: expected a list of at least one message"),
        (["hello"], "messages[0]: expected an object with role and content, got str"),
        ([{"role": "user"}], "messages[0].content: expected a string, or a list of text parts, got nothing"),
        ([USER, {"role": "user", "content": 1}], "messages[1].content: expected a string, or a list of text parts"),
        ([{"role": "user", "content": [1]}], 'messages[0].content[0]: expected {"type": "text", "text": ...}, got int'),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type: 'image_url' is not supported; only text parts are",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text: expected a string"),
        ([{"role": "user", "content": [{"type": "text", "txt": ""}]}], "messages[0].content[0]: 'txt' is an unknown"),
        ([{"role": "root", "content": ""}], "messages[0].role: 'root' is none of system, developer, user"),
        ([{"role": ["user"], "content": ""}], "messages[0].role: ['user'] is none of"),
        ([{"content": ""}], "messages[0].role: None is none of"),
        ([{**USER, "nmae": "x"}], "messages[0]: 'nmae' is an unknown key (did you mean 'name'?)"),
        ([{**USER, "zzz": 1}], "messages[0]: 'zzz' is an unknown key (known: role, content, name"),
        ([{**USER, "tool_call": []}], "messages[0]: 'tool_call' is an unknown key (did you mean 'tool_calls'?)"),
        ([{**USER, "name": 1}], "messages[0].name: expected a string, got int"),
        ([{"role": "user", 3: 1}], "messages[0]: key: expected a string, got int"),
        ([{**USER, "content": "a\ud800"}], "messages[0].content: character 1 is a lone surrogate"),
        (
            [{**USER, "x" * 500: 1}],
            f"messages[0]: '{'x' * 76}... is an unknown key",
        ),
        ([{**CALLING, "tool_calls": CALL}], "messages[0].tool_calls: expected a list, got dict"),
        ([{**CALLING, "tool_calls": []}], "messages[0].content: expected a string"),
        ([{**CALLING, "tool_calls": [1]}], "messages[0].tool_calls[0]: expected an object with a function, got int"),
        ([{**CALLING, "tool_calls": [{}]}], "messages[0].tool_calls[0].name: expected a string, got nothing"),
        ([{**CALLING, "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0].function.name: expected a string"),
        ([{**CALLING, "tool_calls": [{"function": {"name": ""}}]}], "messages[0].tool_calls[0].function.name: it is"),
        ([{**CALLING, "tool_calls": [{**CALL, "idd": ""}]}], "messages[0].tool_calls[0]: 'idd' is an unknown key"),
        (
            [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
            "messages[0].tool_calls[0].function.arguments: expected an object or JSON text, got list",
        ),
        (
            [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1, 2}}}}]}],
            "messages[0].tool_calls[0].function.arguments.a: set is no JSON value",
        ),
    ],
)
def test_invalid_messages_are_reported(messages: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        template_of("qwen2").render(messages)
    assert caught.value.message.startswith(complaint)


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ([], "tools: expected a list of at least one tool"),
        ("weather", "tools: expected a list of at least one tool"),
        ([print], "tools[0]: builtin_function_or_method is no JSON value"),
        (["weather"], "tools[0]: expected an object that describes a function, got str"),
        ([WEATHER, {"type": "web_search"}], "tools[1].name: expected a string, got nothing"),
        ([{"type": "function", "function": "f"}], "tools[0].function: expected an object with name and parameters"),
        ([{"type": "function", "function": {"name": 3}}], "tools[0].function.name: expected a string, got int"),
    ],
)
def test_invalid_tools_are_reported(tools: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        template_of("qwen2").render([USER], tools)
    assert caught.value.message.startswith(complaint)


def test_the_depth_of_nesting_is_limited() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested deeper than 64 levels"):
        template_of("qwen2").render([{**USER, "content": deep}])


@pytest.mark.parametrize(
    ("family", "chat", "complaint"),
    [
        ("gemma2", [{"role": "system", "content": "x"}, USER], "refuses them: System role not supported"),
        (
            "qwen2",
            [{"role": "developer", "content": "x"}, USER],
            r"messages\[0\]\.role: .* leaves 'developer'",
        ),
        ("phi3", [USER, {"role": "tool", "content": "x"}], r"messages\[1\]\.role: .* leaves 'tool' messages"),
        ("qwen2", [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}], "cannot render them: Type"),
    ],
)
def test_unsupported_parts_are_refused_not_dropped(family: str, chat: list[Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        template_of(family).render(chat)


def test_a_key_that_the_template_reads_is_accepted() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{{ m.thinking }}{{ m['mood'] }}{% endfor %}")
    assert template.render([{**USER, "content": "a", "thinking": "b", "mood": "c"}]) == "abc"
    with pytest.raises(InvalidRequest, match="'moood' is an unknown key"):
        template.render([{**USER, "moood": "c"}])


def test_null_keys_of_an_answer_count_as_absent() -> None:
    answer = {"role": "assistant", "content": "x", "refusal": None, "audio": None, "tool_calls": None}
    assert template_of("smollm").render([USER, answer]) == template_of("smollm").render(
        [USER, {"role": "assistant", "content": "x"}]
    )


PARTS = [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}]


def test_text_parts_are_passed_on_or_joined_by_lines() -> None:
    assert "user\nab<end_of_turn>" in template_of("gemma3").render(PARTS)
    assert "user\na \nb<|im_end|>" in template_of("qwen2").render(PARTS)
    only_parts = ChatTemplate("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}")
    assert only_parts.render([USER]) == USER["content"]
    assert only_parts.render([{"role": "system", "content": "x"}, *PARTS]) == "xa b"


def test_the_callers_messages_are_not_modified() -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    template_of("qwen2").render(chat)
    assert chat == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


def test_a_template_may_refuse_and_may_be_broken() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHATS[0])
    with pytest.raises(InvalidRequest, match="unsafe"):
        ChatTemplate("{{ messages.append(1) }}{{ ''.__class__.__mro__ }}").render(CHATS[0])
    with pytest.raises(InvalidRequest, match=r"x{200}\.\.\.$"):
        ChatTemplate("{{ raise_exception('x' * 1000) }}").render(CHATS[0])
    with pytest.raises(InvalidRequest, match="cannot render them: ZeroDivisionError"):
        ChatTemplate("{{ 1 / 0 }}").render(CHATS[0])
    with pytest.raises(ModelCorrupt, match="chat template"):
        ChatTemplate("{% for %}")


# --- Files ----------------------------------------------------------------------------------------------------------


def test_a_model_without_a_template_takes_raw_prompts_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"no chat template .* raw=True"):
        ChatTemplate.load(tmp_path, tokenizer).render([USER])


def test_an_invalid_template_is_reported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelCorrupt, match=r"chat_template\.jinja: it cannot be read as UTF-8"):
        ChatTemplate.load(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelCorrupt, match="chat template"):
        ChatTemplate.load(tmp_path, tokenizer)


def test_special_tokens_are_read_by_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ additional_special_tokens | join('+') }}"
    (tmp_path / "chat_template.jinja").write_text(source)
    assert ChatTemplate.load(tmp_path, tokenizer).render([USER]) == tokenizer.eos_token
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["a", "b"]}
    (tmp_path / "special_tokens.json").write_text(json.dumps(tokens))
    assert ChatTemplate.load(tmp_path, tokenizer).render([USER]) == "<s></s>a+b"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "expected an object of strings, got list"),
        ('{"bos_token": 1}', "bos_token: 1 is neither a string nor a list of strings"),
        ('{"bos_token": ["a", 1]}', "bos_token: .* is neither"),
    ],
)
def test_invalid_special_tokens_are_reported(tmp_path: Path, tokenizer: Tokenizer, text: str, complaint: str) -> None:
    (tmp_path / "chat_template.jinja").write_text("x")
    (tmp_path / "special_tokens.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelCorrupt, match=rf"special_tokens\.json: {complaint}"):
        ChatTemplate.load(tmp_path, tokenizer)
