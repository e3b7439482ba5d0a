"""The device SDK: one object that writes texts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common.clock import MonotonicClock
from common.config import ModelManifest, load_manifest, pair_folder
from common.errors import CloudLost, InvalidRequest, ModelError, PeerMismatch, TokenizerMismatch, VersionMismatch
from common.gate import Gate, Totals
from common.messages import API_VERSION, Capabilities, Open
from common.planner import AdaptivePlanner, Decision, Estimates, FixedPlanner, Planner
from common.session import Event, Failed
from common.stats import GenerationStats
from common.types import Mode, OnDeviation, PromptInput, Proposal, SessionId
from edge_client.config import EdgeConfig, PlannerSettings
from edge_client.drafter import ChoosingDrafter
from edge_client.engine import Engine, EngineSettings
from edge_client.gating import Gates, load_gate
from edge_client.generation import (
    Collector,
    Generation,
    GenerationRequest,
    Prompt,
    generation_params,
    mode_of,
    promises,
    text_limit,
)
from edge_client.grpc_link import GrpcCloud
from edge_client.onnx_model import OnnxModel
from edge_client.output import CommittedText
from edge_client.ports import Cloud
from edge_client.text import ChatTemplate, Tokenizer, chat_tokens

# A second row costs a quarter of a forward and a fourth doubles it; more branches than these are seldom likely.
_BRANCHES = 3
_AUDIT_PATIENCE_S = 5.0  # with clouds that owe an audit when the client is closed


class EdgeClient:
    """Writes on the device, supervised by the cloud.

    Models and connections are made when they are first needed and shared by all generations; generations may run at
    the same time. Use it as an async context manager, or call `aclose`.
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
        self._cloud = cloud
        self._capabilities: Capabilities | None = None
        self._planner = planner or partial(_planner, self.config.planner)
        self._own_gate = gate
        self._gates = Gates(self.config.gate, load_gate(self.config.gate, self.manifest))
        self._token_texts: dict[int, str] = {}  # that risks were asked of
        self._explain = explain
        self._estimates = Estimates()
        self._loading = asyncio.Lock()
        self._running: set[Engine] = set()
        self._audits: set[asyncio.Task[object]] = set()  # of texts that have been told

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """Build a client from a YAML file such as `configs/edge.yaml`."""
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
            return prompt
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidRequest("prompt: it is empty; give some text")
            if raw:
                return self._tokenized(prompt)
            prompt = [{"role": "user", "content": prompt}]
        elif raw:
            raise InvalidRequest("raw: messages always go through the chat template; give the prompt as one string")
        limit = self.manifest.context_tokens
        return PromptInput(
            chat_tokens(
                self.tokenizer, self._template, prompt, tools=tools, parse_special=parse_special, max_tokens=limit
            )
        )

    def request(
        self,
        prompt: Prompt,
        *,
        mode: Mode | str | None = None,
        catch: float | None = None,
        max_deviation: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        raw: bool = False,
        committed_token_ids: Sequence[int] = (),
        warm_start: bool = False,
    ) -> GenerationRequest:
        """Check parameters and fill in the configured defaults; raises InvalidRequest, naming the field."""
        given = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "seed": seed,
            "max_new_tokens": max_new_tokens,
            "stop": stop,
        }
        return GenerationRequest(
            self.prepare(prompt, raw=raw),
            generation_params(given, self.config.generation),
            mode_of(mode, self.config.mode),
            promises({"catch": catch, "max_deviation": max_deviation}, self.config.gate),
            tuple(committed_token_ids),
            warm_start,
        )

    async def stream(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> AsyncGenerator[Event, None]:
        """Yield what happens, token by token; the last event is Finished or Failed.

        `parameters` are those of `request`; a GenerationRequest has them already. Only InvalidRequest, for what cannot
        be asked, is raised. Leaving the iteration cancels the generation.
        """
        request = self._asked(prompt, parameters)
        try:
            engine = await self._engine(request)
        except (CloudLost, PeerMismatch, ModelError) as error:
            self._capabilities = None  # the cloud may be another one the next time
            yield Failed(error, GenerationStats(prompt_tokens=len(request.prompt.token_ids)))
            return
        self._running.add(engine)
        try:
            async with aclosing(engine.stream()) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        self._capabilities = None  # the cloud may not be the one it was
                    yield event
        finally:
            self._running.discard(engine)
            if request.mode is Mode.GATED and engine.audit_pending:
                self._hear_audit(engine)

    async def generate(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> Generation:
        """Generate to the end; raises what a Failed event carries."""
        request = self._asked(prompt, parameters)
        collected = Collector(request)
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                collected.add(event)
        return collected.result()

    async def proposals(self, request: GenerationRequest, token_ids: Sequence[int]) -> list[Proposal]:
        """What the device's model would write at each place of a text that follows the prompt; nothing is asked."""
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
        return (await self._connect())[1]

    def totals(self, *, catch: float | None = None, max_deviation: float | None = None) -> Totals:
        """What became of the tokens of all generations in `gated` that were promised this; None is as configured."""
        wanted = promises({"catch": catch, "max_deviation": max_deviation}, self.config.gate)
        return self._gates.control(wanted).totals

    async def aclose(self) -> None:
        """End the generations that are running, with Failed(Cancelled), then the connection and the model's worker.

        Audits that are on their way get a moment to arrive.
        """
        for engine in tuple(self._running):
            engine.cancel()
        if self._audits:
            await asyncio.wait(tuple(self._audits), timeout=_AUDIT_PATIENCE_S)
        for audit in tuple(self._audits):
            audit.cancel()
        if self._cloud is not None:
            await self._cloud.close()
            self._cloud = self._capabilities = None
        if self._model is not None:
            await asyncio.to_thread(self._model.close)
            self._model = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _asked(self, prompt: Prompt | GenerationRequest, parameters: Mapping[str, Any]) -> GenerationRequest:
        if not isinstance(prompt, GenerationRequest):
            return self.request(prompt, **parameters)
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

    async def _engine(self, request: GenerationRequest) -> Engine:
        context_tokens = self.manifest.context_tokens
        cloud: Cloud | None = None
        if request.mode is not Mode.EDGE:
            try:
                cloud, capabilities = await self._connect()
                if request.mode is Mode.GATED:
                    self._gates.meet(capabilities)
                context_tokens = min(context_tokens, capabilities.context_tokens)
            except CloudLost:
                if not self._continues_alone(request.mode):
                    raise
        limit = text_limit(request, self.manifest, context_tokens)
        model = await self._load_model() if request.mode is not Mode.CLOUD else None
        return Engine(
            self._opening(request),
            limit=limit,
            drafter=self._drafter(model, request) if model else None,
            connect=cloud.link if cloud else None,
            gate=self._gate(request),
            planner=self._planner(request.mode),
            estimates=self._estimates,
            assessor=self._gates.assessor(
                request.mode, self.token_text, len(request.prompt.token_ids), request.committed_token_ids
            ),
            output=CommittedText(self.tokenizer, request.params.stop, resumed=request.committed_token_ids),
            clock=MonotonicClock(),
            settings=self._settings(request),
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

    def _settings(self, request: GenerationRequest) -> EngineSettings:
        cloud = self.config.cloud
        return EngineSettings(
            open_deadline_ms=cloud.open_deadline_ms,
            verification_deadline_ms=cloud.verification_deadline_ms,
            max_span_tokens=self._capabilities.max_span_tokens if self._capabilities else 1,
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

    def _opening(self, request: GenerationRequest) -> Open:
        return Open(
            session_id=SessionId(uuid.uuid4().hex),
            tokenizer_digest=self.manifest.tokenizer_digest,
            sampling=request.params.sampling,
            max_new_tokens=request.params.max_new_tokens,
            eos_token_ids=self.manifest.eos_token_ids,
            prompt_token_ids=request.prompt.token_ids,
            committed_token_ids=request.committed_token_ids,
        )

    async def _connect(self) -> tuple[Cloud, Capabilities]:
        """The channel and what is behind it; asked once, and again after a failure."""
        if self._cloud is None:
            self._cloud = GrpcCloud(self.config.cloud.address)
        if self._capabilities is None:
            capabilities = await self._cloud.capabilities(self.config.cloud.connect_timeout_ms)
            self._check_peer(capabilities)
            self._capabilities = capabilities
        return self._cloud, self._capabilities

    def _check_peer(self, capabilities: Capabilities) -> None:
        if capabilities.api_version != API_VERSION:
            raise VersionMismatch(
                f"api_version: {self.config.cloud.address} speaks {capabilities.api_version}, this device "
                f"{API_VERSION}; update the {'cloud' if capabilities.api_version < API_VERSION else 'device'}"
            )
        if capabilities.tokenizer_digest != self.manifest.tokenizer_digest:
            raise TokenizerMismatch(
                f"tokenizer_digest: {self.config.cloud.address} serves {capabilities.model} with "
                f"{capabilities.tokenizer_digest}, this device has {self.manifest.tokenizer_digest}; "
                "use the same --pair on both ends"
            )

    async def _load_model(self) -> OnnxModel:
        async with self._loading:
            if self._model is None:
                device = self.config.device
                self._model = await asyncio.to_thread(
                    OnnxModel.load,
                    self._folder,
                    threads=device.threads,
                    allow_spinning=device.allow_spinning,
                    vocabulary_size=self.manifest.vocabulary_size,
                    context_tokens=self.manifest.context_tokens,
                    providers=device.providers,
                )
            return self._model


def _planner(planner: PlannerSettings, mode: Mode) -> Planner:
    if planner.policy == "adaptive":
        return AdaptivePlanner(mode)
    # A fired token is what the device waits for, so nothing is gained by collecting more of them.
    span_tokens = 1 if mode is Mode.GATED else planner.span_tokens
    return FixedPlanner(mode, span_tokens, planner.spans_in_flight, planner.run_ahead_tokens, planner.takeover_tokens)
