"""What is left of a generation that failed: all that is needed to resume it."""

from __future__ import annotations

from dataclasses import dataclass

from chaperone_common.types import GenerationParams, Mode, Origin, Promises


@dataclass(frozen=True, slots=True)
class PartialGeneration:
    """The final part of a text whose generation failed, and by which rules it is written.

    `token_ids` are all committed tokens after the prompt, those of an earlier part included. `text` and `origins` are
    of the failed part alone. `model_digest` names the large model that the text was begun with; "" takes any.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    origins: tuple[Origin, ...]
    params: GenerationParams  # with the seed that was drawn
    mode: Mode
    promises: Promises  # of gated
    model_digest: str = ""
