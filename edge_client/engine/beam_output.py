"""The output of a generation with beams: their texts, where these end, and the tokens that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chaperone_common.beams.forest import Numbering
from chaperone_common.beams.frames import BeamVerdict
from chaperone_common.beams.hypotheses import Hypothesis
from chaperone_common.beams.progress import BeamProgress
from chaperone_common.session import Committed
from chaperone_common.token_tree import common_prefix
from chaperone_common.types import FinishReason, Origin
from edge_client.events import Beams, BeamText
from edge_client.ports import OutputText
from edge_client.text.output import CommittedText

Text = tuple[int, ...]  # new tokens of a beam


class BeamOutput:
    """Reads the texts of all beams, and commits what is the same in all of them.

    Whatever text is the best in the end begins with these tokens. So they are final while the texts still grow.
    """

    def __init__(
        self,
        progress: BeamProgress,
        new_text: Callable[[], CommittedText],
        output: OutputText,
        prompt_length: int,
        committed: int = 0,
    ) -> None:
        """`new_text` begins a text without tokens. An earlier generation has committed the first `committed` tokens."""
        self._progress = progress
        self._output = output
        self._prompt_length = prompt_length
        self._committed = committed
        self._new_text = new_text
        self._texts: dict[Text, _Read] = {}
        # What began a resumed text was verified by the cloud.
        self._origins: dict[Text, tuple[Origin, ...]] = {
            text: (Origin.VERIFIED,) * len(text) for text in (*progress.texts, *self._finished)
        }

    def origins(self, numbering: Numbering, texts: Sequence[Text], verdict: BeamVerdict) -> None:
        """Note who wrote the tokens of a verdict on a forest that continues these texts."""
        found = {}
        for step in (*verdict.running, *verdict.finished):
            start, drafted = numbering.path(step.node)
            before = texts[start]
            origins = self._origins[before] + (Origin.VERIFIED,) * len(drafted)
            if step.token_id is None:
                found[*before, *drafted] = origins
            else:
                own = Origin.TAKEOVER if not numbering.depth else Origin.OVERRIDE
                own = Origin.BONUS if numbering.depth and len(drafted) == numbering.depth else own
                found[*before, *drafted, step.token_id] = (*origins, own)
        self._origins |= found

    def stops(self, text: Text) -> bool:
        """Return whether a text of new tokens holds a stop string."""
        return self._read(text).ends

    def stopped(self) -> list[int]:
        """Return the numbers of the running beams whose texts hold a stop string."""
        return [number for number, beam in enumerate(self._progress.running) if self.stops(beam.token_ids)]

    def copies(self, finished: Sequence[Hypothesis]) -> list[int]:
        """Return the ranks of finished texts that read like better ones: those end at other tokens of a stop string."""
        texts = [self._read(found.token_ids).whole() for found in finished]
        return [rank for rank, text in enumerate(texts) if text in texts[:rank]]

    def beams(self) -> Beams:
        """Return the event of the present beams, and forget the texts that have died."""
        progress, penalty = self._progress, self._progress.settings.length_penalty
        running = [
            BeamText(
                beam.token_ids,
                self._read(beam.token_ids).text,
                Hypothesis(beam.token_ids, beam.logprob, "").score(penalty),
                None,
                beam.logprob,
                beam.log_p,
                self._origins[beam.token_ids],
            )
            for beam in progress.running
        ]
        finished = [
            BeamText(
                best.token_ids,
                self._read(best.token_ids).whole(),
                best.score(penalty),
                # A text that is as long as it may be can hold a stop string, too.
                FinishReason.STOP if self.stops(best.token_ids) else FinishReason(best.finish_reason),
                best.logprob,
                origins=self._origins[best.token_ids],
            )
            for best in progress.hypotheses.best
        ]
        live = {*progress.texts, *self._finished}
        self._texts = {text: read for text, read in self._texts.items() if text in live}
        self._origins = {text: origins for text, origins in self._origins.items() if text in live}
        return Beams(tuple(running), tuple(finished))

    def commit(self) -> list[Committed]:
        """Return the events of the tokens that are final now: at the end all of the best text."""
        if self._output.stopped:
            return []
        best = self._progress.hypotheses.best
        texts = [best[0].token_ids] if self._progress.done else [*self._progress.texts, *self._finished]
        shared = texts[0]
        for text in texts[1:]:
            shared = shared[: common_prefix(shared, text)]
        origins, events = self._origins[texts[0]], list[Committed]()
        for place in range(self._committed, len(shared)):
            event = Committed(self._prompt_length + place, shared[place], origins[place])
            with_text, ends = self._output.follow(event)
            assert isinstance(with_text, Committed), "an event stays what it is"
            events.append(with_text)
            self._committed = place + 1
            if ends:
                break
        return events

    @property
    def _finished(self) -> list[Text]:
        return [best.token_ids for best in self._progress.hypotheses.best]

    def _read(self, text: Text) -> _Read:
        """Return a text of tokens as it reads; only tokens that are new are read."""
        if text not in self._texts:
            known = next((text[:end] for end in range(len(text) - 1, -1, -1) if text[:end] in self._texts), ())
            read = self._texts[known].copy() if known in self._texts else _Read(self._new_text())
            for token_id in text[len(known) :]:
                read.push(token_id)
            self._texts[text] = read
        return self._texts[text]


class _Read:
    """The text of a beam up to its first stop string."""

    def __init__(self, stream: CommittedText, text: str = "") -> None:
        self._stream = stream
        self.text = text  # whole characters

    @property
    def ends(self) -> bool:
        """True if it holds a stop string."""
        return self._stream.stopped

    def copy(self) -> _Read:
        return _Read(self._stream.copy(), self.text)

    def push(self, token_id: int) -> None:
        if not self.ends:
            text, _ = self._stream.push(token_id)
            self.text += text

    def whole(self) -> str:
        """Return all of the text, with what was held back; no token follows."""
        return self.text + self._stream.copy().flush()
