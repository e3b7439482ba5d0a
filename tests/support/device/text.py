"""Tokenizers and chats for the tests of text: every sort of tokenizer, with the control tokens of many families."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from cloud_supervisor.export.tiny_corpus import CORPUS
from edge_client.text import ChatTemplate, Tokenizer

TEMPLATES = Path(__file__).resolve().parents[2] / "data" / "templates"

# By name in transformers, as in `special_tokens.json`.
SPECIAL_TOKENS: dict[str, dict[str, str | list[str]]] = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "gemma2": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "gemma3": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "phi3": {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<|endoftext|>"},
    "qwen2": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    "qwen3": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    "smollm": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    "granite": {"bos_token": "<|endoftext|>", "eos_token": "<|end_of_text|>"},
    "bos_list": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<|im_start|>", "<bos>"],
    },
}
CONTROL_TOKENS = (
    *("<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
    *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
)
# As in Phi-3: white space after them belongs to them.
STRIPPING_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ADDED_TEXT = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>")
KINDS = ("byte-level", "prepend", "metaspace", "metaspace-always", "unigram")


@cache
def library_tokenizer(kind: str) -> str:
    """Return a `tokenizer.json` of one kind, with all control tokens of all families."""
    made = {"byte-level": _byte_level, "unigram": _unigram}.get(kind, lambda: _sentence_piece(kind))()
    made.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL_TOKENS])
    made.add_special_tokens([AddedToken(text, normalized=False, rstrip=True) for text in STRIPPING_TOKENS])
    made.add_tokens([AddedToken(text, normalized=False) for text in ADDED_TEXT])
    return str(made.to_str())


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer(Library.from_str(library_tokenizer(kind)))


@cache
def template_of(family: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{family}.jinja").read_text(), SPECIAL_TOKENS[family])


@cache
def reference(kind: str, family: str) -> Any:
    """Return the same tokenizer and template in transformers."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Library.from_str(library_tokenizer(kind)),
        chat_template=(TEMPLATES / f"{family}.jinja").read_text(),
        **SPECIAL_TOKENS[family],
    )


def _byte_level() -> Library:
    made = Library(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([CORPUS], trainer)
    return made


def _sentence_piece(kind: str) -> Library:
    """Return a tokenizer of pieces with `▁`, and `<0x0A>` for the bytes of all other characters."""
    trained = Library(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"])
    trained.train_from_iterator([CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [*("<unk>", "<s>", "</s>"), *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(model["vocab"].keys() - set(pieces), key=model["vocab"].get)
    vocabulary = {piece: token_id for token_id, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in model["merges"]]
    made = Library(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = decoders.Replace("▁", " ")
    if kind == "prepend":  # Llama 2
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        return made
    scheme = "always" if kind == "metaspace-always" else "first"
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()])
    return made


def _unigram() -> Library:
    """Return a tokenizer whose own vocabulary holds control tokens, so that plain text could be read as one."""
    scored = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    scored += [(f"▁{word}", -4.0) for word in dict.fromkeys(CORPUS.split())][:200]
    scored += [(character, -6.0) for character in map(chr, range(33, 127))] + [("▁", -5.0)]
    made = Library(models.Unigram(list(dict(scored).items()), unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)])
    return made


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather <now> & "here", as a list []',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "ein Ort, 語"}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TEXT_CALL = {"id": "abcdefgh2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
USER = {"role": "user", "content": "How warm is it?"}
SYSTEM = {"role": "system", "content": " Be brief. "}
RESULT = {"role": "tool", "content": "21 °C", "tool_call_id": "abcdefgh1", "name": "weather"}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one message": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {
        "messages": [
            SYSTEM,
            {"role": "user", "content": "naïve 語 🙂 e\u0301\n\n"},
            {"role": "assistant", "content": "  3 "},
            {"role": "user", "content": "<b>1 & 2</b> > [x]"},
        ]
    },
    "turns without system": {
        "messages": [{"role": "user", "content": "a\tb "}, {"role": "assistant", "content": "\n語 "}, USER],
    },
    "rims": {"messages": [{"role": "user", "content": "> quoted <"}, {"role": "assistant", "content": "|>"}, USER]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "spaces": {"messages": [{"role": "user", "content": " \n a \t"}, {"role": "assistant", "content": " "}, USER]},
    "not alternating": {"messages": [USER, USER]},
    "later system": {"messages": [USER, {"role": "assistant", "content": "x"}, SYSTEM, USER]},
    "thought": {
        "messages": [
            USER,
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nWarm."},
            {"role": "user", "content": "<think>? </think> <tool_call>"},
        ]
    },
    "reasoning": {"messages": [USER, {"role": "assistant", "content": "Warm.", "reasoning_content": "\nhm"}]},
    "tools": {"messages": [SYSTEM, USER], "tools": [WEATHER]},
    "a call": {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT],
        "tools": [WEATHER],
    },
    "system and a call": {
        "messages": [SYSTEM, USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT],
        "tools": [WEATHER],
    },
    "a call without content": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]},
    "calls": {
        "messages": [
            USER,
            {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, TEXT_CALL]},
            RESULT,
            {**RESULT, "tool_call_id": "abcdefgh2"},
            {"role": "assistant", "content": "21 °C"},
            USER,
        ],
        "tools": [WEATHER, {"type": "function", "function": {"name": "none", "parameters": {}}}],
    },
}
