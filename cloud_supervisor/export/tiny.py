"""The pair of the tests: a two-layer Qwen2 with random weights, and a copy with noise. It needs no download.

Random weights are enough to test a protocol. The two models agree mostly, and disagree often enough. Their
distributions have a few likely tokens, and texts end now and then.
"""

from __future__ import annotations

import math

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from chaperone_common.artefacts.registry import TinySource
from cloud_supervisor.export.conversion import LoadedModel
from cloud_supervisor.export.tiny_corpus import CORPUS

VOCABULARY = 512
PADDED_ROWS = 16  # logits beyond the vocabulary, as in real models, so that masking is tested
END_OF_TEXT = ("<|im_end|>", "<|endoftext|>")
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HIDDEN = 128
LOGIT_SCALE = 3.75  # standard deviation of the logits; entropy is about ln(512) - LOGIT_SCALE**2 / 2 nats
GAIN = 1.5  # scale of each layer's matrices
END_OF_TEXT_SCALE = 1.1  # longer rows of the end-of-text ids make a text end every few dozen tokens

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def build_tiny(source: TinySource) -> LoadedModel:
    """Return the target model if the noise is 0, else a draft model."""
    tokenizer = train_tokenizer()
    return LoadedModel(_random_model(source, tokenizer).eval(), tokenizer)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 512 ids, trained on a fixed text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _random_model(source: TinySource, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return a model with random weights.

    The layers have larger weights than the embedding. Else a tied model would only repeat its last token.
    """
    config = Qwen2Config(
        vocab_size=VOCABULARY + PADDED_ROWS,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(source.seed)
    noise_generator = torch.Generator().manual_seed(source.seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            elif "embed_tokens" in name:
                weight.normal_(std=1 / math.sqrt(HIDDEN), generator=generator)
            else:
                steps = _int4_steps(weight.shape, source.noise, generator, noise_generator)
                weight.copy_(steps * (GAIN / 7.5 / math.sqrt(weight.shape[1])))
        embedding = model.model.embed_tokens.weight
        for token in END_OF_TEXT:
            embedding[tokenizer.convert_tokens_to_ids(token)] *= END_OF_TEXT_SCALE
        model.model.norm.weight.fill_(LOGIT_SCALE)
    return model


def _int4_steps(
    shape: torch.Size, noise: float, generator: torch.Generator, noise_generator: torch.Generator
) -> torch.Tensor:
    """Return a matrix of -8 and 7, the ends of int4's range, of which the share `noise` is one step nearer to zero.

    Int4 holds these values exactly, so quantisation changes nothing, and only the noise distinguishes the two models.
    Other random weights would not survive the rounding.
    """
    steps = 15 * torch.randint(0, 2, shape, generator=generator) - 8
    moved = torch.rand(shape, generator=noise_generator) < noise
    return torch.where(moved, steps - steps.sign(), steps)
