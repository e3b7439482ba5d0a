"""Chat messages to the text of a prompt, as the model's own template writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chaperone_common.errors import InvalidRequest, ModelCorrupt
from chaperone_common.suggestion import shown
from edge_client.text.messages import Chat, checked_chat
from edge_client.text.tokenizer import FETCH, Tokenizer

SpecialTokens = Mapping[str, str | list[str]]
_PROBE = "zqprobezq"  # no filter changes letters
_REFUSAL = 200  # characters of a template's own words
# Templates leave contents of other roles out on purpose: Llama 3's that of an assistant who calls a tool, for example.
_MAY_BE_LEFT_OUT = ("user", "assistant")


class ChatTemplate:
    """Renders chats to prompts, exactly as transformers' `apply_chat_template` does. Any thread may use it."""

    def __init__(self, source: str | None, special_tokens: SpecialTokens | None = None) -> None:
        """`special_tokens` are the names that templates know, such as `bos_token`; without a source chats are refused.

        Raises ModelCorrupt for a source that does not parse.
        """
        self._special_tokens = dict(special_tokens or {})
        self._template: jinja2.Template | None = None
        self._names: frozenset[str] = frozenset()  # of variables
        self._keys: frozenset[str] = frozenset()  # by which values are looked up, and other strings
        if source is None:
            return
        environment = _environment()
        try:
            self._names, self._keys = _words_of(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelCorrupt(f"chat template: {error}; {FETCH}") from error
        self._takes_text, self._takes_parts = self._content_forms()

    @classmethod
    def load(cls, folder: Path | str, tokenizer: Tokenizer) -> ChatTemplate:
        """Load `chat_template.jinja` and `special_tokens.json`; raises ModelCorrupt.

        A model without a chat template takes raw prompts only.
        """
        path = Path(folder) / "chat_template.jinja"
        try:
            source = path.read_text(encoding="utf-8") if path.exists() else None
            return cls(source, _special_tokens(Path(folder), tokenizer))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelCorrupt(f"{path}: it cannot be read as UTF-8 text: {error}; {FETCH}") from error

    def checked(self, messages: Any, tools: Any = None) -> Chat:
        """Check messages and tools, and that the template leaves none of them out; raises InvalidRequest.

        What a template makes of `name`, `tool_call_id` and `reasoning_content` is left to it, as in transformers.
        """
        if self._template is None:
            raise InvalidRequest(
                "messages: this model has no chat template (chat_template.jinja); "
                "give the prompt as one string with raw=True, or with --raw"
            )
        # A key that the template reads is no typo.
        chat = checked_chat(messages, tools, self._keys)
        if chat.tools is not None and "tools" not in self._names:
            raise InvalidRequest("tools: this model's chat template has no place for them; leave them out")
        for index, message in enumerate(chat.messages):
            if message.get("tool_calls") and "tool_calls" not in self._keys:
                raise InvalidRequest(
                    f"messages[{index}].tool_calls: this model's chat template has no place for them; "
                    "put them into the content"
                )
            if "content" in message:
                message["content"] = self._in_form(message["content"])
        self._refuse_left_out(chat)
        return chat

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Return the prompt that ends where the assistant's answer begins; raises InvalidRequest."""
        return self.render_chat(self.checked(messages, tools))

    def render_chat(self, chat: Chat) -> str:
        """Return the prompt of a checked chat; raises InvalidRequest if the template refuses it."""
        try:
            return self._rendered(chat)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {_short(error)}") from error
        except Exception as error:  # a template may do anything to values it did not expect
            raise InvalidRequest(
                f"messages: the model's chat template cannot render them: {type(error).__name__}: {_short(error)}"
            ) from error

    def _rendered(self, chat: Chat) -> str:
        assert self._template is not None
        return self._template.render(
            messages=chat.messages,
            tools=chat.tools,
            documents=None,
            add_generation_prompt=True,
            strftime_now=chat.moment.strftime,
            **self._special_tokens,
        )

    def attempt(self, chat: Chat) -> str | None:
        """Return the prompt of a checked chat, or None if the template refuses it."""
        try:
            return self._rendered(chat)
        except Exception:  # as in `render_chat`
            return None

    def _content_forms(self) -> tuple[bool, bool]:
        """Return whether the template writes string contents, and whether it writes lists of parts."""
        as_text = self.attempt(Chat([{"role": "user", "content": _PROBE}]))
        as_parts = self.attempt(Chat([{"role": "user", "content": [{"type": "text", "text": _PROBE}]}]))
        takes_text = as_text is None or _PROBE in as_text
        if as_parts is None or _PROBE not in as_parts:
            return takes_text, False
        return takes_text, re.search(f"""text['"]: *['"]{_PROBE}""", as_parts) is None  # the list itself was written

    def _in_form(self, content: str | list[dict[str, str]] | None) -> str | list[dict[str, str]] | None:
        if isinstance(content, list) and not self._takes_parts:
            return "\n".join(part["text"] for part in content)
        if isinstance(content, str) and not self._takes_text and self._takes_parts:
            return [{"type": "text", "text": content}]
        return content

    def _refuse_left_out(self, chat: Chat) -> None:
        """Raise InvalidRequest for a message that the template leaves out, as some do with unknown roles."""
        probes = {
            index: f"{_PROBE}{index}zq"
            for index, message in enumerate(chat.messages)
            if message["role"] not in _MAY_BE_LEFT_OUT and message.get("content")
        }
        if not probes:
            return
        probed = chat.with_contents({index: self._in_form(probe) for index, probe in probes.items()})
        rendered = self.attempt(probed)
        for index, probe in probes.items():
            role = chat.messages[index]["role"]
            if rendered is None or probe in rendered or (index == 0 and self._begins_with(probed.messages[0], probe)):
                continue
            raise InvalidRequest(
                f"messages[{index}].role: this model's chat template leaves {role!r} messages at this place out; "
                "give its content in a message of another role"
            )

    def _begins_with(self, message: dict[str, Any], probe: str) -> bool:
        """Return whether a chat may begin with this message.

        Mistral's template leaves a system prompt out while a tool's result comes last.
        """
        rendered = self.attempt(Chat([message, {"role": "user", "content": self._in_form("x")}]))
        return rendered is not None and probe in rendered


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _words_of(template: nodes.Template) -> tuple[frozenset[str], frozenset[str]]:
    """Return the variables of a template, and its attributes and strings, which may be keys."""
    attributes = {node.attr for node in template.find_all(nodes.Getattr)}
    strings = {node.value for node in template.find_all(nodes.Const) if isinstance(node.value, str)}
    return frozenset(node.name for node in template.find_all(nodes.Name)), frozenset(attributes | strings)


def _special_tokens(folder: Path, tokenizer: Tokenizer) -> SpecialTokens:
    """Those of `special_tokens.json`, by their names in transformers; without the file the end of text alone."""
    path = folder / "special_tokens.json"
    if not path.exists():
        return {} if tokenizer.eos_token is None else {"eos_token": tokenizer.eos_token}
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{path}: not JSON: {error}; {FETCH}") from error
    if not isinstance(tokens, dict):
        raise ModelCorrupt(f"{path}: expected an object of strings, got {type(tokens).__name__}; {FETCH}")
    for name, token in tokens.items():
        several = token if isinstance(token, list) else [token]
        if not all(isinstance(text, str) for text in several):
            raise ModelCorrupt(f"{path}: {name}: {shown(token)} is neither a string nor a list of strings; {FETCH}")
    return tokens


def _short(error: Exception) -> str:
    message = str(error)
    return message if len(message) <= _REFUSAL else f"{message[:_REFUSAL]}..."


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, this does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
