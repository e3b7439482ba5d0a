"""Between text and tokens: tokenizer, chat template, streamed text, stop strings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import tokenizers
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.errors import InvalidRequest, ModelCorrupt, ModelMissing

if TYPE_CHECKING:
    from common.config import ModelManifest

ROLES = ("system", "user", "assistant", "tool")


class Tokenizer:
    """The tokenizer of one model artefact."""

    def __init__(self, tokenizer: Any, *, eos_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)

    @classmethod
    def load(cls, folder: Path | str, manifest: ModelManifest) -> Tokenizer:
        """Load `tokenizer.json`; raises ModelMissing, or ModelCorrupt if it is not the one of the manifest."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelMissing(f"{path}: there is no such file; fetch the model with `chaperone-cloud models pull`")
        try:
            loaded = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelCorrupt(f"{path}: not a tokenizer: {error}") from error
        tokenizer = cls(loaded, eos_token_ids=manifest.eos_token_ids)
        if tokenizer.vocabulary_size != manifest.vocabulary_size:
            raise ModelCorrupt(
                f"{path}: it has {tokenizer.vocabulary_size} tokens, its manifest says {manifest.vocabulary_size}"
            )
        return tokenizer

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id, special tokens included."""
        return 1 + max(int(token_id) for token_id in self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def eos_token(self) -> str | None:
        """The text of the first end-of-text token."""
        return self._tokenizer.id_to_token(self.eos_token_ids[0]) if self.eos_token_ids else None

    def encode(self, text: str) -> tuple[int, ...]:
        """Text to token ids; the text of special tokens becomes those tokens, and none is added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids to text without special tokens; what is not UTF-8 becomes U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def new_decoder(self) -> Callable[[int], str]:
        """A decoder of one stream: gives, token by token, the text that ends with a whole character."""
        stream = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        return lambda token_id: stream.step(self._tokenizer, token_id) or ""


class DetokenizerStream:
    """Turns token ids into text one by one, never a part of a character.

    The pieces, with the flushed rest, add up to `tokenizer.decode` of all ids. Text that ends in U+FFFD may be an
    unfinished character and is held back until it is finished, or proves to be none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.new_decoder()
        self._token_ids: list[int] = []
        self._emitted = 0  # characters

    def push(self, token_id: int) -> str:
        """Take one more token; returns the text that is now certain."""
        self._token_ids.append(token_id)
        piece = self._decoder(token_id)
        self._emitted += len(piece)
        return piece

    def flush(self) -> str:
        """The text still held back, when no more tokens come; a second call has nothing left to give."""
        rest = self._tokenizer.decode(self._token_ids)[self._emitted :]
        self._emitted += len(rest)
        return rest


class StopScanner:
    """Cuts streamed text before the first stop string, and holds back what may be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stopped

    def push(self, text: str) -> tuple[str, bool]:
        """Take more text; returns the part that is safe to show, and whether a stop string was met.

        Of several stop strings the one that starts first cuts, as in a search of the whole text.
        """
        if self._stopped:
            return "", True
        self._held += text
        hold = self._first_open_start()
        met = self._first_met()
        self._stopped = met is not None and met <= hold
        end = met if met is not None and met <= hold else hold
        safe, self._held = self._held[:end], "" if self._stopped else self._held[end:]
        return safe, self._stopped

    def flush(self) -> str:
        """The text held back, when no more comes; it may end at a stop string, see `stopped`."""
        met = self._first_met()
        rest, self._held = self._held[:met], ""
        self._stopped = self._stopped or met is not None
        return rest

    def _first_met(self) -> int | None:
        """Where the first stop string in the held text starts."""
        starts = (self._held.find(stop) for stop in self._stop)
        return min((start for start in starts if start >= 0), default=None)

    def _first_open_start(self) -> int:
        """Where the held text's longest end that begins a stop string starts; its length if there is none."""
        longest = max((len(stop) for stop in self._stop), default=1)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(stop.startswith(self._held[start:]) for stop in self._stop):
                return start
        return len(self._held)


class ChatTemplate:
    """Renders chat messages to a prompt, exactly as transformers' `apply_chat_template` does."""

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelCorrupt(f"chat template: {error}") from error
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: text for name, text in tokens.items() if text is not None}

    @classmethod
    def load(cls, folder: Path | str, tokenizer: Tokenizer) -> ChatTemplate:
        """Load `chat_template.jinja`; raises ModelMissing or ModelCorrupt."""
        path = Path(folder) / "chat_template.jinja"
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ModelMissing(f"{path}: there is no such file; this model takes plain prompts only") from error
        except UnicodeDecodeError as error:
            raise ModelCorrupt(f"{path}: not UTF-8 text: {error}") from error
        return cls(source, eos_token=tokenizer.eos_token)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that ends where the assistant's answer begins; raises InvalidRequest."""
        checked = _check_messages(messages)
        try:
            return self._template.render(
                messages=checked, tools=None, documents=None, add_generation_prompt=True, **self._tokens
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {error}") from error


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRequest("messages: expected a list of at least one message")
    checked = []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"{field}: expected an object with role and content, got {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InvalidRequest(f"{field}.role: {role!r} is none of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InvalidRequest(f"{field}.content: expected a string, got {type(content).__name__}")
        checked.append({"role": role, "content": content})
    return checked


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, this does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
