"""The cloud's end of one generation: it requests forwards, and turns their choices into answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chaperone_common.errors import InvalidRequest, PromptTooLong, ProtocolViolation
from chaperone_common.frames import Close, Closed, Continuation, Draft, Open, ServerFrame, Verdict
from chaperone_common.logprobs import ChoiceLogprobs
from chaperone_common.ranges import check_ranges
from chaperone_common.session.logprobs import of_verdict
from chaperone_common.session.transitions import State, StreamEvent, step
from chaperone_common.session.verification import follow_branches, verify
from chaperone_common.token_tree import BranchToken, TokenTree, common_prefix


@dataclass(frozen=True, slots=True)
class VerificationRequest:
    """A forward that the session waits for."""

    tree: TokenTree  # the whole text to read, and the branch tokens that may stand
    num_choices: int  # choices wanted after the last tokens of the chain, and one more for each branch token; 0: none
    start: int  # the position of the first choice wanted
    judged: tuple[int, ...]  # the tokens from `start` on that the choices are compared with
    frame: Draft | Close | None  # None: the cloud writes by itself
    first_reported: int = 0  # the index of the first choice along the chain whose log-probabilities can be sent


class CloudSession:
    """The text as the cloud knows it, and the revision.

    `receive` takes a frame, and returns the forward that it needs, or None. `answer` takes the choices of that forward,
    and returns the frame to send. `writing` returns the next forward of a takeover.
    """

    def __init__(self, frame: Open, *, context_tokens: int, vocabulary_size: int) -> None:
        """Start from an Open; raises InvalidRequest or PromptTooLong."""
        self.text = [*frame.prompt_token_ids, *frame.committed_token_ids]
        if not frame.prompt_token_ids:
            raise InvalidRequest("prompt_token_ids: empty; give at least one token")
        check_ranges(frame, "max_new_tokens", *(["top_logprobs"] if frame.top_logprobs is not None else []))
        if len(self.text) >= context_tokens:
            raise PromptTooLong(
                f"prompt: {len(self.text)} tokens leave no room in a context of {context_tokens}; shorten it"
            )
        if len(frame.committed_token_ids) > frame.max_new_tokens:
            raise InvalidRequest(
                f"committed_token_ids: {len(frame.committed_token_ids)} tokens, more than max_new_tokens, "
                f"{frame.max_new_tokens}; raise it"
            )
        self.vocabulary_size = vocabulary_size
        for token_id in self.text:
            if not 0 <= token_id < vocabulary_size:
                raise InvalidRequest(f"prompt_token_ids: {token_id} is not in a vocabulary of {vocabulary_size}")
        self.prompt_length = len(frame.prompt_token_ids)
        self.limit = min(self.prompt_length + frame.max_new_tokens, context_tokens)
        self.eos_token_ids = frozenset(frame.eos_token_ids)
        self.state = step(State.NEW, StreamEvent.OPEN)
        self.revision = 0
        self.stale_frames = 0
        self.takeovers = 0  # begun so far
        self.hand_backs = 0  # takeovers that ended before the Close
        self.deadline_ms = 0  # of the latest Draft, set by it or by an earlier one; 0: none
        self._takeover_left = 0
        # Below this position the device accepts the cloud's tokens, even if a Draft on its way calls them final.
        self._vouched = 0
        self._judged_last = False  # the latest frame was judged, and the text has not changed since
        self._latest: Draft | None = None  # the Draft received last, stale or not; copies do not change it

    @property
    def writes(self) -> bool:
        """The cloud is writing: a takeover runs."""
        return self.state is State.CLOUD_WRITES

    @property
    def ended(self) -> bool:
        """The text is complete."""
        return len(self.text) >= self.limit or (
            len(self.text) > self.prompt_length and self.text[-1] in self.eos_token_ids
        )

    def receive(self, frame: Draft | Close) -> VerificationRequest | None:
        """Take a frame, and return the forward that it needs; None if it is stale. Raises ProtocolViolation."""
        match frame:
            case Draft():
                return self._receive_draft(frame)
            case Close():
                self.state = step(self.state, StreamEvent.CLOSE)
                return self._receive_tail(frame)

    def writing(self) -> VerificationRequest:
        """Return the next forward of a takeover."""
        return VerificationRequest(TokenTree(tuple(self.text)), 1, len(self.text), (), None)

    def hands_back(self, frame: Draft) -> bool:
        """Return whether a Draft ends the takeover: the device writes again, and the text does not contradict it."""
        if not self.writes or frame.revision != self.revision or self._is_copy(frame):
            return False
        return not self._contradicted(frame)

    def hand_back(self) -> Continuation:
        """End a takeover, and return the frame that reports it."""
        self.state = step(self.state, StreamEvent.HAND_BACK)
        self.hand_backs += 1
        self._takeover_left = 0
        return Continuation(len(self.text), (), handed_back=True)

    def answer(
        self,
        request: VerificationRequest,
        choices: Sequence[int],
        queue_us: int = 0,
        compute_us: int = 0,
        logprobs: Sequence[ChoiceLogprobs] = (),
    ) -> ServerFrame:
        """Turn the choices of a forward into the frame to send, and advance the text.

        `choices` has one id after each of the last `num_choices` tokens, and then one after each branch token.
        `logprobs` has an entry for each choice from the request's `first_reported` on, or none at all.
        """
        match request.frame:
            case None:
                return replace(self._continue(choices[0], queue_us, compute_us), logprobs=tuple(logprobs))
            case Draft() as frame:
                verdict = self._verdict(request, frame, choices, queue_us, compute_us)
                found = of_verdict(
                    logprobs,
                    request.tree,
                    request.num_choices - request.first_reported,
                    first=request.start + request.first_reported,
                    position=verdict.position,
                    tokens=(verdict.token_id, *verdict.further_token_ids),
                )
                return replace(verdict, logprobs=found)
            case Close():
                return self._closed(request, choices, queue_us, compute_us)

    def _receive_draft(self, frame: Draft) -> VerificationRequest | None:
        if self._is_copy(frame):
            self._check_copy(frame)
            self.stale_frames += 1
            return None
        self._latest = frame
        self.deadline_ms = frame.deadline_ms or self.deadline_ms
        if frame.revision < self.revision:
            self.stale_frames += 1
            return None
        self._check(frame)
        self.state = step(self.state, StreamEvent.DRAFT)
        after_verdict, self._judged_last = self._judged_last, False
        if self._contradicted(frame):
            # The cloud has written another token there, and has reported it: the device is about to receive it.
            self.revision += 1
            self.stale_frames += 1
            if after_verdict and not self.ended:  # the device expects a takeover as it receives that Verdict
                self._take_over(frame)
            return None
        agreed = self._agreed(frame)
        if agreed < len(frame.token_ids):
            del self.text[frame.start + agreed :]  # committed on the device: its text is kept, and audited
        known = self.text[frame.start + agreed :] if agreed == len(frame.token_ids) else []
        if known:
            return _answered(frame.start + agreed, frame)
        judged = frame.token_ids[agreed:]
        start = frame.start + agreed
        if not judged and self.ended:  # it repeats the end of the text, which the device is about to receive
            self.stale_frames += 1
            return None
        if (
            start + len(judged) >= self.limit
        ):  # there is no choice beyond the limit, so the cloud's own token replaces the last one
            judged = judged[:-1]
        tree = TokenTree((*self.text[:start], *judged), self._open_branches(frame, agreed, start + len(judged)))
        count = len(judged) + 1
        final = min(count, max(0, frame.final_before - start))  # on the device already
        return VerificationRequest(tree, count, start, judged, frame, first_reported=final)

    def _open_branches(self, frame: Draft, agreed: int, end: int) -> tuple[BranchToken, ...]:
        """Return the branch tokens of a Draft that may stand and be followed by a choice, next to a chain up to `end`.

        A branch cannot stand if it leaves the chain before a token that is settled, by agreement or by commitment.
        If the whole chain is settled, the cloud has sent more already, or writes no further than its own token.
        """
        if agreed == len(frame.token_ids):
            return ()
        settled = max(frame.start + agreed, frame.final_before)
        return frame.tree.pruned(end, first_parent=settled - 1, limit=self.limit).branches

    def _receive_tail(self, frame: Close) -> VerificationRequest:
        self._check_place(frame.start, frame.token_ids)
        agreed = self._agreed(frame)
        start = frame.start + agreed
        unread = frame.token_ids[agreed:]
        del self.text[start:]
        if not unread:
            return _answered(start, frame)
        return VerificationRequest(TokenTree((*self.text, *unread[:-1])), len(unread), start, unread, frame)

    def _verdict(
        self, request: VerificationRequest, frame: Draft, choices: Sequence[int], queue_us: int, compute_us: int
    ) -> Verdict:
        if not choices:
            self._vouch(frame)
            return Verdict(self.revision, request.start, self.text[request.start])
        audited = max(0, frame.final_before - request.start)
        along_chain, after_branches = choices[: request.num_choices], choices[request.num_choices :]
        outcome = verify(request.judged, along_chain, audited=audited, eos_token_ids=self.eos_token_ids)
        position = request.start + outcome.stands
        further = follow_branches(
            request.tree,
            after_branches,
            position=position,
            token_id=outcome.token_id,
            eos_token_ids=self.eos_token_ids,
        )
        self.text = [*request.tree.token_ids[:position], outcome.token_id, *further]
        self._vouch(frame)
        deviations = tuple(request.start + index for index in outcome.deviations)
        own = frame.token_ids[position - frame.start : position - frame.start + 1]
        contradicted = bool(own) and own[0] != outcome.token_id
        if (
            contradicted and position < frame.final_before
        ):  # the last token before the limit, which is committed already
            deviations += (position,)
        elif contradicted:
            self.revision += 1
        if (contradicted or not frame.token_ids) and not self.ended:
            self._take_over(frame)
        self._judged_last = not self.writes
        return Verdict(self.revision, position, outcome.token_id, deviations, queue_us, compute_us, further)

    def _vouch(self, frame: Draft) -> None:
        """Keep to the answer, unless the device had committed a token of its own after the span."""
        if frame.final_before <= frame.end:
            self._vouched = len(self.text)

    def _take_over(self, frame: Draft) -> None:
        """Begin to write, up to the number of tokens that are welcome."""
        if frame.continuation_tokens:
            self.state = step(self.state, StreamEvent.TAKEOVER)
            self.takeovers += 1
            self._takeover_left = frame.continuation_tokens

    def _continue(self, token_id: int, queue_us: int, compute_us: int) -> Continuation:
        start = len(self.text)
        self.text.append(token_id)
        self._takeover_left -= 1
        handed_back = self._takeover_left == 0 or self.ended
        self.hand_backs += handed_back
        self.state = step(self.state, StreamEvent.HAND_BACK if handed_back else StreamEvent.CONTINUATION)
        return Continuation(start, (token_id,), handed_back, queue_us, compute_us)

    def _closed(self, request: VerificationRequest, choices: Sequence[int], queue_us: int, compute_us: int) -> Closed:
        self.state = step(self.state, StreamEvent.CLOSED)
        deviations = tuple(
            request.start + index
            for index, (token_id, choice) in enumerate(zip(request.judged, choices, strict=True))
            if token_id != choice
        )
        return Closed(deviations, queue_us, compute_us)

    def _is_copy(self, frame: Draft) -> bool:
        """Return whether a Draft has begun before: a device sends each position once in a revision, in order."""
        latest = self._latest
        if latest is None:
            return False
        if frame.revision != latest.revision:
            return frame.revision < latest.revision
        repeats_request = not frame.token_ids and not latest.token_ids and frame.start == latest.end
        return frame.start < latest.end or repeats_request

    def _check_copy(self, frame: Draft) -> None:
        """Raise ProtocolViolation for tokens that no earlier Draft of the revision had."""
        latest = self._latest
        if latest is not None and frame.revision == latest.revision and frame.end > latest.end:
            raise ProtocolViolation(
                f"start: {frame.start} is below {latest.end}, the end of the last Draft; send each token once"
            )

    def _contradicted(self, frame: Draft) -> bool:
        """Return whether the cloud has written another token where the device asks for a verdict, or accepts one."""
        agreed = self._agreed(frame)
        position = frame.start + agreed
        accepted = position < self._vouched
        return (
            agreed < len(frame.token_ids) and position < len(self.text) and (accepted or frame.final_before <= position)
        )

    def _agreed(self, frame: Draft | Close) -> int:
        """Return how many leading tokens of a frame are already in the text."""
        return common_prefix(self.text[frame.start : frame.start + len(frame.token_ids)], [*frame.token_ids])

    def _check(self, frame: Draft) -> None:
        if frame.revision > self.revision:
            raise ProtocolViolation(f"revision: {frame.revision} was never given, the latest is {self.revision}")
        self._check_place(frame.start, frame.token_ids)
        if not frame.start <= frame.final_before <= frame.end + 1:
            raise ProtocolViolation(
                f"final_before: {frame.final_before} is outside the span from {frame.start} to {frame.end}, and the "
                "token after it"
            )
        self._check_branches(frame)
        if not frame.token_ids and (frame.start != len(self.text) or self.ended):
            raise ProtocolViolation(f"start: {frame.start} is not where the cloud can write on, {len(self.text)} is")

    def _check_branches(self, frame: Draft) -> None:
        chain = len(frame.token_ids)
        if frame.branches and frame.final_before >= frame.end:
            raise ProtocolViolation(
                f"parents: {len(frame.branches)} branch tokens next to {chain} tokens, and none of these is judged"
            )
        deepest = max(frame.tree.positions, default=0)
        if deepest >= self.limit:
            raise ProtocolViolation(f"parents: a branch token at {deepest} is not below the limit of {self.limit}")
        self._check_ids([branch.token_id for branch in frame.branches])

    def _check_place(self, start: int, token_ids: Sequence[int]) -> None:
        if not self.prompt_length <= start <= len(self.text):
            raise ProtocolViolation(f"start: {start} is outside [{self.prompt_length}, {len(self.text)}]")
        if start + len(token_ids) > self.limit:
            raise ProtocolViolation(f"token_ids: {len(token_ids)} tokens from {start} pass the limit of {self.limit}")
        self._check_ids(token_ids)

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocabulary_size:
                raise ProtocolViolation(f"token_ids: {token_id} is not in a vocabulary of {self.vocabulary_size}")


def _answered(start: int, frame: Draft | Close) -> VerificationRequest:
    """Return a request that wants no choice: the text already holds the answer."""
    return VerificationRequest(TokenTree(()), 0, start, (), frame)
