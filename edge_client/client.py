"""The device SDK: one object that writes texts."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.clock import MonotonicClock
from chaperone_common.errors import (
    Cancelled,
    ChaperoneError,
    CloudLost,
    InternalError,
    InvalidRequest,
    ModelError,
    ModelMismatch,
    Overloaded,
)
from chaperone_common.frames import Capabilities, Open
from chaperone_common.partial import PartialGeneration
from chaperone_common.session import Event, Failed, Retracted
from chaperone_common.stats import GenerationStats
from chaperone_common.types import Mode, OnDeviation, PromptInput, Proposal, SessionId
from edge_client.cancellation import Cancellation, Interrupt
from edge_client.config import EdgeConfig, PlannerSettings
from edge_client.engine.engine import Engine, EngineSettings
from edge_client.gate import Gate, Totals
from edge_client.gate.gating import Gates, load_gate
from edge_client.generation import Collector, Generation, GenerationRequest, Prompt
from edge_client.link.peer import Peer
from edge_client.model.drafter import ChoosingDrafter
from edge_client.model.onnx_model import OnnxModel
from edge_client.parameters import RequestParameters, parse_promises, parse_request, text_limit
from edge_client.planner import AdaptivePlanner, Decision, Estimates, FixedPlanner, Planner
from edge_client.ports import Cloud
from edge_client.text import ChatTemplate, Tokenizer, chat_tokens
from edge_client.text.output import CommittedText, ProvisionalText

# A second row costs a quarter of a forward and a fourth doubles it; more branches than these are seldom likely.
_BRANCHES = 3
_AUDIT_PATIENCE_S = 5.0  # with clouds that owe an audit when the client is closed


class EdgeClient:
    """Writes on the device, supervised by the cloud.

    Models and connections are made when they are first needed and shared by all generations; generations may run at
    the same time, on one event loop. Use it as an async context manager, or call `aclose`. A client may be used again
    on another event loop once the first has ended, and not in a process that was forked off.
    """

    def __init__(
        self,
        config: EdgeConfig | None = None,
        *,
        cloud: Cloud | None = None,
        planner: Callable[[Mode], Planner] | None = None,
        gate: Callable[[Mode], Gate] | None = None,
        explain: Callable[[Decision], None] | None = None,
    ) -> None:
        """`cloud` replaces the gRPC connection, and `explain` is told every decision.

        `planner` and `gate` make those of each generation, by its mode, in place of the configured ones; what the mode
        promises is then theirs to keep.
        Raises ModelMissing, ModelCorrupt, GateMismatch or ConfigError.
        """
        self.config = config or EdgeConfig()
        self._folder = pair_folder(self.config.pair, "edge")
        self.manifest: ModelManifest = load_manifest(self._folder, role="edge")
        self.tokenizer = Tokenizer.load(self._folder, self.manifest)
        self._template = ChatTemplate.load(self._folder, self.tokenizer)
        self._model: OnnxModel | None = None
        self._peer = Peer(self.config.cloud, self.manifest, cloud)
        self._planner = planner or partial(_planner, self.config.planner)
        self._own_gate = gate
        self._gates = Gates(self.config.gate, load_gate(self.config.gate, self.manifest))
        self._token_texts: dict[int, str] = {}  # that risks were asked of
        self._explain = explain
        self._estimates = Estimates()
        self._loading: asyncio.Task[OnnxModel] | None = None
        self._running: set[Engine] = set()
        self._interrupts: set[Interrupt] = set()  # of all generations, those that are only beginning as well
        self._audits: set[asyncio.Task[object]] = set()  # of texts that have been told
        self._loop: asyncio.AbstractEventLoop | None = None  # that it was used on last
        self._process = os.getpid()

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """Build a client from a YAML file such as `edge.yaml`."""
        return cls(EdgeConfig.load(path))

    def prepare(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        parse_special: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> PromptInput:
        """Turn a prompt into tokens: one user message, a list of messages, or, if `raw`, text as it is.

        Messages and `tools` are what transformers' `apply_chat_template` takes. The text of a control token in them,
        such as `<|im_end|>`, is text. With `parse_special` it is the control token, as it always is in a `raw` prompt.
        Any thread may call this. Raises InvalidRequest for an empty prompt, malformed messages or tools, what the
        model's chat template has no place for, or messages that are to be `raw`.
        """
        if tools is not None and (raw or isinstance(prompt, PromptInput)):
            raise InvalidRequest("tools: the chat template writes them; give messages, or one message that is not raw")
        if isinstance(prompt, PromptInput):
            if raw or parse_special:
                raise InvalidRequest("raw, parse_special: they say how text is read, and the prompt is tokens already")
            return prompt
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidRequest("prompt: it is empty; give some text")
            if raw:
                return self._tokenized(prompt)
            prompt = [{"role": "user", "content": prompt}]
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
            raise InvalidRequest(
                f"prompt: {type(prompt).__name__} is not text, a list of messages, a PromptInput or an error's partial"
            )
        elif raw:
            raise InvalidRequest("raw: messages always go through the chat template; give the prompt as one string")
        limit = self.manifest.context_tokens
        return PromptInput(
            chat_tokens(
                self.tokenizer, self._template, prompt, tools=tools, parse_special=parse_special, max_tokens=limit
            )
        )

    def request(self, prompt: Prompt | PartialGeneration, **parameters: Unpack[RequestParameters]) -> GenerationRequest:
        """Check parameters and fill in the configured defaults; see `RequestParameters`.

        `prompt` is as in `prepare`, or the `partial` of an error, whose generation then goes on as if nothing had
        happened; what its text was begun with need not be given, and cannot be changed. Raises InvalidRequest, naming
        the field.
        """
        return parse_request(prompt, parameters, self.config, self.prepare)

    async def stream(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> AsyncGenerator[Event, None]:
        """Yield what happens, token by token; the last event is Finished or Failed.

        The generation may take `timeout` seconds, and ends with Failed(GenerationTimeout) after them; `cancellation`
        ends it from elsewhere, and leaving the iteration does so, too. `parameters` are those of `request`; a
        GenerationRequest has them already. Raises only InvalidRequest, for what cannot be asked.
        """
        async with aclosing(self._run(prompt, timeout, cancellation, parameters, [])) as events:
            async for event in events:
                yield event

    async def generate(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """Generate to the end; see `stream`.

        Raises what a Failed event carries. Its `partial` holds what was final: `generate(error.partial)` resumes it.
        """
        asked: list[Collector] = []
        async with aclosing(self._run(prompt, timeout, cancellation, parameters, asked)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise event.error
        return asked[0].result()

    async def _run(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        timeout: float | None,
        cancellation: Cancellation | None,
        parameters: RequestParameters,
        asked: list[Collector],
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a generation, whose time runs from here on; `asked` gets what collects them."""
        self._enter_loop()
        if cancellation is not None and not isinstance(cancellation, Cancellation):
            raise InvalidRequest(f"cancellation: {cancellation!r} is not a Cancellation")
        interrupt = Interrupt(timeout)
        self._interrupts.add(interrupt)
        try:
            with (cancellation or Cancellation()).stopping(interrupt.canceller()):
                try:
                    request = await interrupt.bounded(self._asked(prompt, parameters))
                except Cancelled as error:
                    yield Failed(error, GenerationStats())
                    return
                collected = Collector(request)
                asked.append(collected)
                async with aclosing(self._events(request, interrupt, collected)) as events:
                    async for event in events:
                        collected.add(event)
                        if isinstance(event, Failed):
                            event.error.partial = collected.partial()
                            if not isinstance(event.error, Cancelled):
                                self._peer.forget()  # the cloud may not be the one it was
                        yield event
        finally:
            self._interrupts.discard(interrupt)

    async def _events(
        self, request: GenerationRequest, interrupt: Interrupt, collected: Collector
    ) -> AsyncGenerator[Event, None]:
        """Yield the events; begins again where the cloud was replaced after it was asked what it serves."""
        prompt_tokens = len(request.prompt.token_ids)
        for may_begin_again in (True, False):
            try:
                engine = await interrupt.bounded(self._engine(request, interrupt))
            except InvalidRequest:
                raise
            except ChaperoneError as error:
                yield Failed(error, GenerationStats(prompt_tokens=prompt_tokens, seed=request.params.sampling.seed))
                return
            async with aclosing(self._written(engine, request)) as events:
                async for event in events:
                    if may_begin_again and isinstance(event, Failed) and self._begins_again(event, request, collected):
                        break
                    yield event
                else:
                    return
            self._peer.forget()
            if collected.drafted:
                yield Retracted(prompt_tokens)

    @staticmethod
    def _begins_again(failed: Failed, request: GenerationRequest, collected: Collector) -> bool:
        """Whether the cloud refused a text that it had yet to begin, for another model's sake."""
        begun = request.model_digest or request.committed_token_ids or collected.token_ids
        return isinstance(failed.error, ModelMismatch) and not begun

    async def _written(self, engine: Engine, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self._running.add(engine)
        try:
            async with aclosing(engine.stream()) as events:
                async for event in events:
                    yield event
        finally:
            self._running.discard(engine)
            if request.mode is Mode.GATED and engine.audit_pending:
                self._hear_audit(engine)

    async def load(self) -> None:
        """Load the device's model now, rather than with the first generation; raises ModelError or ConfigError."""
        self._enter_loop()
        await self._load_model()

    async def proposals(self, request: GenerationRequest, token_ids: Sequence[int]) -> list[Proposal]:
        """What the device's model would write at each place of a text that follows the prompt; nothing is asked."""
        self._enter_loop()
        model = await self._load_model()
        drafter = ChoosingDrafter(model.new_sequence(), request.params.sampling)
        try:
            proposals = [await drafter.step(request.prompt.token_ids)]
            proposals += await drafter.read(token_ids[:-1])
        finally:
            drafter.close()
        return proposals[: len(token_ids)]

    async def capabilities(self) -> Capabilities:
        """What the cloud serves; raises CloudLost or PeerMismatch."""
        self._enter_loop()
        return (await self._peer.connect())[1]

    def totals(self, *, catch: float | None = None, max_deviation: float | None = None) -> Totals:
        """What became of the tokens of all generations in `gated` that were promised this; None is as configured."""
        wanted = parse_promises({"catch": catch, "max_deviation": max_deviation}, self.config.gate)
        return self._gates.control(wanted).totals

    async def aclose(self) -> None:
        """End the generations that are running, with Failed(Cancelled), then the connection and the model's worker.

        Audits that are on their way get a moment to arrive.
        """
        if self._process != os.getpid():  # what it holds belongs to the process that made it
            return
        self._enter_loop()
        for interrupt in tuple(self._interrupts):
            interrupt.stop(Cancelled("generation: the client was closed"))
        for engine in tuple(self._running):
            engine.cancel()
        if self._audits:
            await asyncio.wait(tuple(self._audits), timeout=_AUDIT_PATIENCE_S)
        for audit in tuple(self._audits):
            audit.cancel()
        await self._peer.close()
        if self._loading is not None:
            with suppress(ModelError, InvalidRequest):
                self._model = await asyncio.shield(self._loading)
            self._loading = None
        if self._model is not None:
            await asyncio.to_thread(self._model.close)
            self._model = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _enter_loop(self) -> None:
        """Belong to the running event loop; raises InvalidRequest where another one has the client."""
        if self._process != os.getpid():
            raise InvalidRequest("client: it was made in another process; make a new one after the fork")
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            if self._loop.is_running():
                raise InvalidRequest("client: another event loop is using it; make one client for each, or close it")
            self._loading = None
            self._running.clear()
            self._interrupts.clear()
            self._audits.clear()
            self._peer.leave_loop()
        self._loop = loop

    async def _asked(
        self, prompt: Prompt | PartialGeneration | GenerationRequest, parameters: RequestParameters
    ) -> GenerationRequest:
        if not isinstance(prompt, GenerationRequest):
            # A long prompt takes seconds to become tokens, and other generations are to go on meanwhile.
            return await asyncio.to_thread(self.request, prompt, **parameters)
        if parameters:
            raise InvalidRequest(
                f"{', '.join(parameters)}: a GenerationRequest has all parameters already; give them to `request`"
            )
        return prompt

    def _tokenized(self, text: str) -> PromptInput:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"prompt: character {error.start} is a lone surrogate; give valid Unicode") from None
        return PromptInput(self.tokenizer.encode(text, max_tokens=self.manifest.context_tokens))

    async def _engine(self, request: GenerationRequest, interrupt: Interrupt) -> Engine:
        context_tokens = self.manifest.context_tokens
        cloud: Cloud | None = None
        capabilities: Capabilities | None = None
        lost: ChaperoneError | None = None
        if request.mode is not Mode.EDGE:
            try:
                cloud, capabilities = await self._peer.connect(request.model_digest)
                if request.mode is Mode.GATED:
                    self._gates.meet(capabilities)
                context_tokens = min(context_tokens, capabilities.context_tokens)
            except (CloudLost, Overloaded, InternalError) as error:  # as in mid-text
                if not self._continues_alone(request.mode):
                    raise
                lost = error
        limit = text_limit(request, self.manifest, context_tokens)
        output = CommittedText(self.tokenizer, request.params.stop, resumed=request.committed_token_ids)
        if output.stopped:
            raise InvalidRequest(
                "committed_token_ids: their text already holds a stop string; nothing is left to write after it"
            )
        model = await self._load_model() if request.mode is not Mode.CLOUD else None
        return Engine(
            self._opening(request, capabilities),
            limit=limit,
            drafter=self._drafter(model, request) if model else None,
            connect=self._peer.links(cloud) if cloud else None,
            gate=self._gate(request),
            planner=self._planner(request.mode),
            estimates=self._estimates,
            assessor=self._gates.assessor(
                request.mode, self.token_text, len(request.prompt.token_ids), request.committed_token_ids
            ),
            output=output,
            provisional=ProvisionalText(
                self.tokenizer, len(request.prompt.token_ids), resumed=request.committed_token_ids
            ),
            clock=MonotonicClock(),
            settings=self._settings(request, capabilities),
            interrupt=interrupt,
            cloud_lost=lost,
            explain=self._explain,
        )

    def _gate(self, request: GenerationRequest) -> Gate:
        if self._own_gate is not None:
            return self._own_gate(request.mode)
        return self._gates.gate(request.mode, request.promises)

    def token_text(self, token_id: int) -> str:
        """What a token decodes to alone; what is no whole character becomes U+FFFD."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self.tokenizer.decode([token_id])
        return self._token_texts[token_id]

    def _hear_audit(self, engine: Engine) -> None:
        """Let the gate learn from the audit of a text's end, for which nobody waited."""
        task = asyncio.create_task(engine.audit())
        self._audits.add(task)
        task.add_done_callback(self._audits.discard)

    def _drafter(self, model: OnnxModel, request: GenerationRequest) -> ChoosingDrafter:
        """A sequence for one generation; only where the cloud judges are branches of use."""
        branches = 0 if request.mode is Mode.EDGE else _BRANCHES
        return ChoosingDrafter(model.new_sequence(branches=branches), request.params.sampling)

    def _settings(self, request: GenerationRequest, capabilities: Capabilities | None) -> EngineSettings:
        cloud = self.config.cloud
        return EngineSettings(
            open_deadline_ms=cloud.open_deadline_ms,
            verification_deadline_ms=cloud.verification_deadline_ms,
            max_span_tokens=capabilities.max_span_tokens if capabilities else 1,
            reconnect_timeout_ms=cloud.reconnect_timeout_ms,
            continue_without_cloud=self._continues_alone(request.mode),
            closing_audit=self.config.closing_audit,
            audit_share=self.config.gate.audit_share,
            on_deviation=self.config.gate.on_deviation if request.mode is Mode.GATED else OnDeviation.KEEP,
            warm_start=request.warm_start,
        )

    def _continues_alone(self, mode: Mode) -> bool:
        """Whether a generation goes on without the cloud; the cloud's own mode cannot."""
        on_loss = self.config.cloud.on_loss
        return mode is not Mode.CLOUD and (on_loss == "continue" or (on_loss == "default" and mode is Mode.GATED))

    def _opening(self, request: GenerationRequest, capabilities: Capabilities | None) -> Open:
        return Open(
            session_id=SessionId(uuid.uuid4().hex),
            tokenizer_digest=self.manifest.tokenizer_digest,
            sampling=request.params.sampling,
            max_new_tokens=request.params.max_new_tokens,
            eos_token_ids=self.manifest.eos_token_ids,
            prompt_token_ids=request.prompt.token_ids,
            committed_token_ids=request.committed_token_ids,
            model_digest=capabilities.model_digest if capabilities else "",
        )

    async def _load_model(self) -> OnnxModel:
        """Load the model once, for all that wait for it; those that are cancelled meanwhile do not stop it."""
        if self._model is None:
            if self._loading is None:
                self._loading = asyncio.create_task(asyncio.to_thread(self._read_model))
                self._loading.add_done_callback(_retrieved)
            loading = self._loading
            try:
                self._model = await asyncio.shield(loading)
            finally:
                if loading.done() and self._loading is loading:
                    self._loading = None
        return self._model

    def _read_model(self) -> OnnxModel:
        device = self.config.device
        return OnnxModel.load(
            self._folder,
            threads=device.threads,
            allow_spinning=device.allow_spinning,
            vocabulary_size=self.manifest.vocabulary_size,
            context_tokens=self.manifest.context_tokens,
            providers=device.providers,
        )


def _retrieved(loading: asyncio.Task[OnnxModel]) -> None:
    """Take the error of a loading for which nobody waits any more; the next one meets it again."""
    if not loading.cancelled():
        loading.exception()


def _planner(planner: PlannerSettings, mode: Mode) -> Planner:
    if planner.policy == "adaptive":
        return AdaptivePlanner(mode)
    # A fired token is what the device waits for, so nothing is gained by collecting more of them.
    span_tokens = 1 if mode is Mode.GATED else planner.span_tokens
    return FixedPlanner(mode, span_tokens, planner.spans_in_flight, planner.run_ahead_tokens, planner.takeover_tokens)
