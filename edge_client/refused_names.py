"""Names that a call does not take, such as well-known parameters of other APIs, and what to do instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from chaperone_common.errors import InvalidRequest
from chaperone_common.suggestion import cut, near_name

# Names of Hugging Face's `generate`, OpenAI, vLLM, llama.cpp and Ollama. A sentence completes "NAME: ...". In braces
# are parameters of ours, which the endpoint may call otherwise.
_SENTENCES: tuple[tuple[str, str], ...] = (
    (
        "max_length",
        "it counts the prompt, too; give {max_new_tokens}, which counts new tokens alone",
    ),
    (
        "max_new_tokens max_completion_tokens max_output_tokens max_tokens_to_sample max_gen_len num_predict n_predict",
        "it is called {max_new_tokens} here",
    ),
    (
        "min_length min_new_tokens min_tokens",
        "there is no shortest length, since the large model ends a text where it would alone; leave it out",
    ),
    (
        "max_time",
        "give {timeout}, in seconds",
    ),
    (
        "stop_sequences stop_sequence stop_strings end_sequences",
        "it is called {stop} here",
    ),
    (
        "stopping_criteria",
        "the cloud cannot run it; give {stop}, or stop reading the stream when your own condition holds",
    ),
    (
        "eos_token_id bos_token_id decoder_start_token_id stop_token_ids ignore_eos",
        "the pair's own control tokens are used; leave it out, or end a text by {stop}",
    ),
    (
        "pad_token_id padding padding_side",
        "nothing is padded, since each text is read by itself; leave it out",
    ),
    (
        "use_beam_search",
        "give {num_beams}, and {temperature} 0 for beam search",
    ),
    (
        "num_beam_groups diversity_penalty",
        "there are no groups of beams; leave it out, and give {num_beams} with a {temperature} above 0 for texts that "
        "differ",
    ),
    (
        "n",
        "a call writes one text; call again for another, with another {seed}, or give {num_beams} and "
        "{num_return_sequences}",
    ),
    (
        "repetition_penalty encoder_repetition_penalty presence_penalty frequency_penalty repeat_penalty repeat_last_n "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size exponential_decay_length_penalty",
        "there are no penalties, since they would change the large model's distribution, of which each token is a "
        "sample; leave it out, or raise {temperature}",
    ),
    (
        "logit_bias sequence_bias bad_words bad_words_ids force_words_ids suppress_tokens begin_suppress_tokens "
        "constraints forced_bos_token_id forced_eos_token_id allowed_token_ids",
        "no token can be forced or forbidden, since that would change the large model's distribution; leave it out, "
        "and ask for it in the prompt",
    ),
    (
        "logits_processor logits_processors prefix_allowed_tokens_fn custom_generate",
        "the cloud chooses tokens, too, and cannot run a function of the device; leave it out, and use {temperature}, "
        "{top_p}, {top_k} or {min_p}",
    ),
    (
        "response_format guided_json guided_regex guided_choice guided_grammar structured_outputs json_schema grammar "
        "format",
        "no form can be forced; leave it out, ask for the form in the prompt, and check the text",
    ),
    (
        "typical_p epsilon_cutoff eta_cutoff top_a top_h tfs_z mirostat mirostat_tau mirostat_eta xtc_probability "
        "xtc_threshold penalty_alpha",
        "both ends know only {temperature}, {top_p}, {top_k} and {min_p}; use one of these",
    ),
    (
        "guidance_scale watermarking_config dola_layers renormalize_logits",
        "it would change the large model's distribution, of which each token is a sample; leave it out",
    ),
    (
        "do_sample",
        "give {temperature}: 0 is greedy, and above 0 tokens are drawn",
    ),
    (
        "assistant_model assistant_tokenizer draft_model speculative_model prompt_lookup_num_tokens "
        "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold",
        "the pair's small model is the assistant, and the planner decides how far it drafts; choose another pair, or "
        "leave it out",
    ),
    (
        "use_cache past_key_values cache_implementation cache_config",
        "keys and values are always kept, also between the turns of a conversation; leave it out",
    ),
    (
        "input_ids inputs inputs_embeds attention_mask position_ids token_type_ids",
        "the prompt itself is text, messages or token ids; leave it out",
    ),
    (
        "tokenizer skip_special_tokens clean_up_tokenization_spaces",
        "the pair's own tokenizer is used, and control tokens are no part of a text; leave it out",
    ),
    (
        "output_scores output_logits",
        "give {logprobs} and {top_logprobs}, which report log-probabilities",
    ),
    (
        "output_attentions output_hidden_states",
        "the cloud sends token ids alone; leave it out",
    ),
    (
        "return_dict_in_generate",
        "a result always has text, token ids and statistics; leave it out",
    ),
    (
        "generation_config",
        "give its values one by one, under their own names",
    ),
    (
        "num_ctx n_ctx",
        "the context is that of the two models; leave it out",
    ),
    (
        "stream stream_options",
        "call `stream` for events, or `stream_text` for text",
    ),
    (
        "model",
        "the client's pair is the model; name it as EdgeConfig(pair=...)",
    ),
    (
        "messages system input",
        "the first argument takes messages, those of the system too; give them there",
    ),
)
_SENTENCE_OF = {name: sentence for names, sentence in _SENTENCES for name in names.split()}


class _Names(dict[str, str]):
    """The names of parameters; those without another keep their own."""

    def __missing__(self, name: str) -> str:
        return name


def instead_of(name: str, names: Mapping[str, str] | None = None) -> str | None:
    """Return a sentence about a well-known parameter that is refused; None if the name is not well known.

    `names` has other names of our parameters, by which the reader knows them.
    """
    sentence = _SENTENCE_OF.get(name)
    return None if sentence is None else sentence.format_map(_Names(names or {}))


def refuse_others(given: Mapping[str, Any], takes: Collection[str], elsewhere: Mapping[str, str]) -> None:
    """Raise InvalidRequest for a name that a call does not take: say what to do instead, or suggest the nearest one.

    `elsewhere` has names that other calls take, each with a sentence about it. They may be given as None.
    """
    for name, value in given.items():
        if name in takes or (name in elsewhere and value is None):
            continue
        if name in elsewhere:
            raise InvalidRequest(f"{name}: no parameter here; {elsewhere[name]}")
        instead = instead_of(name)
        if instead is None:
            near = near_name(name, (*takes, *elsewhere))
            hint = f"known: {', '.join(takes)}" if near is None else f"did you mean {near!r}?"
            where = elsewhere.get(near or "")
            instead = f"unknown parameter ({hint}){f'; {where}' if where else ''}"
        raise InvalidRequest(f"{cut(name)}: {instead}")
