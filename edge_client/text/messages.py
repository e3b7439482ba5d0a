"""The parts of a chat: messages and tools as OpenAI and transformers write them, checked by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from chaperone_common.errors import InvalidRequest
from chaperone_common.suggestion import cut, did_you_mean, shown

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_CALL_KEYS = ("id", "type", "function", "index")
_FUNCTION_KEYS = ("name", "arguments")
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Chat:
    """Checked messages and tools, as a template reads them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    moment: datetime = dataclasses.field(default_factory=datetime.now)  # templates may write its date

    def with_strings(self, changed: Callable[[str], str]) -> Chat:
        """Return the same chat with every string changed but the roles."""
        messages = [
            {key: value if key == "role" else _with_strings(value, changed) for key, value in message.items()}
            for message in self.messages
        ]
        return replace(self, messages=messages, tools=_with_strings(self.tools, changed))

    def with_contents(self, contents: Mapping[int, Any]) -> Chat:
        """Return the same chat with other contents of some messages, by their index."""
        messages = [
            {**message, "content": contents[index]} if index in contents else message
            for index, message in enumerate(self.messages)
        ]
        return replace(self, messages=messages)


def checked_chat(messages: Any, tools: Any, further_keys: Collection[str] = ()) -> Chat:
    """Check messages and tools; raises InvalidRequest that names the field. `further_keys` of messages are welcome."""
    return Chat(_checked_messages(messages, further_keys), None if tools is None else _checked_tools(tools))


def _checked_messages(messages: Any, further_keys: Collection[str]) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InvalidRequest("messages: expected a list of at least one message")
    return [_checked_message(message, f"messages[{index}]", further_keys) for index, message in enumerate(messages)]


def _checked_message(message: Any, field: str, further_keys: Collection[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{field}: expected an object with role and content, got {_kind(message)}")
    checked: dict[str, Any] = _plain(message, field)
    if checked.get("role") not in ROLES:
        raise InvalidRequest(f"{field}.role: {shown(checked.get('role'))} is none of {', '.join(ROLES)}")
    # API clients send the keys of an answer back with null for everything that it did not have.
    checked = {key: value for key, value in checked.items() if value is not None or key in MESSAGE_KEYS}
    check_keys(checked, field, MESSAGE_KEYS, further_keys)
    for key in ("name", "tool_call_id", "reasoning_content"):
        if checked.get(key) is not None:
            _check_text(checked[key], f"{field}.{key}")
    if checked.get("tool_calls") is not None:
        _check_calls(checked["tool_calls"], f"{field}.tool_calls")
    _check_content(checked, field)
    return checked


def _check_content(message: dict[str, Any], field: str) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidRequest(f"{field}.content: expected a string, or a list of text parts, got {_kind(content)}")
    for index, part in enumerate(content):
        place = f"{field}.content[{index}]"
        if not isinstance(part, dict):
            raise InvalidRequest(f'{place}: expected {{"type": "text", "text": ...}}, got {_kind(part)}')
        if part.get("type") != "text":
            raise InvalidRequest(f"{place}.type: {shown(part.get('type'))} is not supported; only text parts are")
        check_keys(part, place, ("type", "text"))
        _check_text(part.get("text"), f"{place}.text")


def _check_calls(calls: Any, field: str) -> None:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{field}: expected a list, got {_kind(calls)}")
    for index, call in enumerate(calls):
        place = f"{field}[{index}]"
        if not isinstance(call, dict):
            raise InvalidRequest(f"{place}: expected an object with a function, got {_kind(call)}")
        nested = "function" in call
        check_keys(call, place, _CALL_KEYS, () if nested else _FUNCTION_KEYS)
        for key in ("id", "type"):
            if call.get(key) is not None:
                _check_text(call[key], f"{place}.{key}")
        function, place = (call["function"], f"{place}.function") if nested else (call, place)
        if not isinstance(function, dict):
            raise InvalidRequest(f"{place}: expected an object with name and arguments, got {_kind(function)}")
        if nested:
            check_keys(function, place, _FUNCTION_KEYS)
        _check_name(function.get("name"), f"{place}.name")
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str | dict):
            raise InvalidRequest(f"{place}.arguments: expected an object or JSON text, got {_kind(arguments)}")


def _checked_tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes) or not tools:
        raise InvalidRequest("tools: expected a list of at least one tool; leave it out where there are none")
    checked = [_plain(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    for index, tool in enumerate(checked):
        place = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise InvalidRequest(f"{place}: expected an object that describes a function, got {_kind(tool)}")
        function, place = (tool["function"], f"{place}.function") if "function" in tool else (tool, place)
        if not isinstance(function, dict):
            raise InvalidRequest(f"{place}: expected an object with name and parameters, got {_kind(function)}")
        _check_name(function.get("name"), f"{place}.name")
    return checked


def check_keys(value: Mapping[str, Any], field: str, known: Sequence[str], further: Collection[str] = ()) -> None:
    """Raise InvalidRequest, with a suggestion, for a key that is not known."""
    for key in value:
        if key not in known and key not in further:
            raise InvalidRequest(f"{field}: {shown(key)} is an unknown key{did_you_mean(key, known)}")


def _check_name(value: Any, field: str) -> None:
    _check_text(value, field)
    if not value:
        raise InvalidRequest(f"{field}: it is empty; give the function's name")


def _check_text(value: Any, field: str) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"{field}: expected a string, got {_kind(value)}")


def _plain(value: Any, field: str, depth: int = 0) -> Any:
    """Return the value in JSON's types, which templates can read and write."""
    if depth > _MAX_DEPTH:
        raise InvalidRequest(f"{field}: nested deeper than {_MAX_DEPTH} levels")
    match value:
        case str():
            return _unicode(value, field)
        case None | bool() | int() | float():
            return value
        case Mapping():
            for key in value:
                _check_text(key, f"{field}: key")
            return {_unicode(key, field): _plain(item, cut(f"{field}.{key}"), depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{field}[{index}]", depth + 1) for index, item in enumerate(value)]
        case _:
            raise InvalidRequest(f"{field}: {_kind(value)} is no JSON value")


def _unicode(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field}: character {error.start} is a lone surrogate; give valid Unicode") from None
    return text


def _with_strings(value: Any, changed: Callable[[str], str]) -> Any:
    match value:
        case str():
            return changed(value)
        case list():
            return [_with_strings(item, changed) for item in value]
        case dict():
            return {changed(key): _with_strings(item, changed) for key, item in value.items()}
        case _:
            return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
