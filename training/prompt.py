"""A prompt, and files of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from chaperone_common.errors import ConfigError
from chaperone_common.files import replace_file

KINDS = ("code", "general", "reasoning")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user's message, with a name that is its own."""

    id: str
    kind: str  # one of KINDS
    text: str


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write a file of JSON lines. Raises ConfigError for a file of other prompts: somebody may have added his own."""
    lines = [json.dumps(asdict(prompt), ensure_ascii=False) + "\n" for prompt in prompts]
    content = "".join(lines).encode()
    if path.exists():
        if path.read_bytes() == content:
            return
        raise ConfigError(f"{path}: it holds other prompts, and is left as it is; name another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [content])


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file; raise ConfigError, naming the line, if it is not one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    prompts = [_prompt_of(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ConfigError(f"{path}: it holds no prompt; write JSON lines of id, kind and text")
    refuse_twice(prompts, path)
    return prompts


def refuse_twice(prompts: Iterable[Prompt], path: Path) -> None:
    """Raise ConfigError, naming the file, if two prompts have one id."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ConfigError(f"{path}: id {prompt.id!r} is there twice; give each prompt its own")
        seen.add(prompt.id)


def _prompt_of(line: str, place: str) -> Prompt:
    try:
        row = json.loads(line)
        prompt = Prompt(row["id"], row["kind"], row["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place}: not a prompt ({error}); write an object of id, kind and text") from None
    if not all(isinstance(value, str) and value for value in (prompt.id, prompt.kind, prompt.text)):
        raise ConfigError(f"{place}: id, kind and text must be texts that are not empty")
    if prompt.kind not in KINDS:
        raise ConfigError(f"{place}: kind {prompt.kind!r} is none; there are {', '.join(KINDS)}")
    return prompt
