"""A cloud's end that takes frames from a hostile device, and checks after each what must always hold."""

from __future__ import annotations

from collections.abc import Callable

from chaperone_common.beams.frames import ForestFrame
from chaperone_common.errors import ChaperoneError
from chaperone_common.frames import ClientFrame, Closed, Continuation, Draft, Open, ServerFrame, Verdict
from chaperone_common.session import CloudSession, VerificationRequest
from chaperone_common.session.transitions import State

CONTEXT = 40
VOCABULARY = 50
Choose = Callable[[int], int]  # from the number of a choice, counted over the stream, to a token id


class AttackedCloud:
    """A session, a model that chooses at random, and the rules that a supervisor keeps around them."""

    def __init__(self, opening: Open, choose: Choose) -> None:
        """Raise ChaperoneError for an Open that is refused."""
        self.session = CloudSession(opening, context_tokens=CONTEXT, vocabulary_size=VOCABULARY)
        self.prompt = opening.prompt_token_ids
        self.refusal: ChaperoneError | None = None
        self.replies: list[ServerFrame] = []
        self._choose = choose
        self._choices = 0
        self._check()

    @property
    def ended(self) -> bool:
        """True if the stream takes no more frames."""
        return self.refusal is not None or self.session.state is State.DONE

    def take(self, frame: ClientFrame | None) -> None:
        """Take a frame; None lets the cloud write one token of its takeover."""
        if self.ended:
            return
        session, before = self.session, (list(self.session.text), self.session.revision)
        try:
            if isinstance(frame, Open | ForestFrame):
                return  # the supervisor refuses a second Open before the session sees it
            if frame is None:
                request = session.writing() if session.writes else None
            else:
                if isinstance(frame, Draft) and session.hands_back(frame):
                    self.replies.append(session.hand_back())
                request = session.receive(frame)
        except ChaperoneError as error:
            self.refusal = error
            request = None
        if self.refusal is not None:
            assert str(self.refusal), "a refusal has a reason"
            assert (session.text, session.revision) == before, "a refused frame changes nothing"
            return
        if request is not None:
            self._answer(request)
        assert session.revision >= before[1]
        self._check()

    def _answer(self, request: VerificationRequest) -> None:
        session, limit = self.session, self.session.limit
        known = list(session.text)
        assert request.tree.depth <= limit
        assert len(request.tree.token_ids) < limit or not request.num_choices
        wanted = request.num_choices + len(request.tree.branches) if request.num_choices else 0
        choices = [self._choose(self._choices + index) % VOCABULARY for index in range(wanted)]
        self._choices += wanted
        reply = session.answer(request, choices)
        self.replies.append(reply)
        match reply:
            case Verdict(position=position, token_id=token_id, further_token_ids=further):
                frame = request.frame
                assert isinstance(frame, Draft)
                assert session.prompt_length <= position <= frame.end
                assert session.text[position] == token_id
                assert not further or session.text[position + 1 :] == [*further]
                assert [*reply.deviations] == sorted(set(reply.deviations))
                assert all(frame.start <= place < min(frame.final_before, frame.end) for place in reply.deviations)
            case Continuation(start, token_ids):
                assert session.text == [*known, *token_ids], "a takeover appends"
                assert start == len(known)
            case Closed(deviations):
                assert all(session.prompt_length <= place < limit for place in deviations)
                assert session.state is State.DONE
            case _:
                raise AssertionError(f"{reply} answers no frame")

    def _check(self) -> None:
        session = self.session
        assert tuple(session.text[: session.prompt_length]) == self.prompt, "the prompt never changes"
        assert len(session.text) <= session.limit <= CONTEXT
        assert all(0 <= token_id < VOCABULARY for token_id in session.text)
        assert not (session.writes and session.ended), "nothing is written after the end"
