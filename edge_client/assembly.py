"""The only place that builds an engine: for clients, for simulations and for tests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.beams.frames import BeamSettings
from chaperone_common.clock import Clock, MonotonicClock
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import (
    ChaperoneError,
    CloudLost,
    CloudUnavailable,
    InternalError,
    InvalidRequest,
    Overloaded,
)
from chaperone_common.frames import Capabilities, Open
from chaperone_common.ranges import MAX_COUNT
from chaperone_common.token_tree import common_prefix
from chaperone_common.types import BeamParams, Mode, OnDeviation, Promises, SamplingParams, SessionId
from edge_client.artefacts.model import check_model
from edge_client.beams.costs import ForestEstimates
from edge_client.beams.drafting import ForestDrafter
from edge_client.beams.shape import ForestPlanner, Learned, Limits
from edge_client.caches import ConversationCaches
from edge_client.cancellation import Interrupt
from edge_client.config import EdgeConfig, cloud_share_problem
from edge_client.engine.beam_engine import BeamEngine
from edge_client.engine.conditioning import Wish
from edge_client.engine.engine import Engine
from edge_client.engine.prompt_encodings import PromptEncodings
from edge_client.engine.settings import EngineSettings
from edge_client.gate import CloudShareLimit, Control, Gate
from edge_client.gate.gating import Gates, load_gate
from edge_client.generation import GenerationRequest
from edge_client.link.connection import Route
from edge_client.link.peer import Peer
from edge_client.model.adapted_drafter import AdaptedDrafter
from edge_client.model.corrections import CorrectionMemory
from edge_client.model.drafter import ChoosingDrafter
from edge_client.model.onnx_beams import OnnxBeams
from edge_client.model.onnx_sequence import OnnxSequence
from edge_client.model.shared_model import SharedModel
from edge_client.parameters import check_begun_beams, check_max_beams, check_reported, text_limit
from edge_client.planner import AdaptivePlanner, Estimates, FixedPlanner, Planner
from edge_client.ports import Cloud, Corrections, Drafter, DraftModel, OutputText, RiskModel
from edge_client.text import Tokenizer
from edge_client.text.output import CommittedText, EventText

# A second branch adds a quarter to the time of a forward, and a fourth one doubles it. More than three places for a
# branch are rarely worth drafting.
_BRANCHES = 3

_WIDEST_FOREST, _DEEPEST_FOREST = 8, 8  # texts of a layer, and layers, unless a request asks for more

MakeDrafter = Callable[[DraftModel, SamplingParams], Drafter]


def assemble(
    opening: Open,
    settings: EngineSettings,
    *,
    limit: int,
    drafter: Drafter | None,
    routes: Sequence[Route],
    gate: Gate,
    planner: Planner,
    estimates: Estimates,
    risk_model: RiskModel | None = None,
    corrections: Corrections | None = None,
    output: OutputText,
    clock: Clock,
    interrupt: Interrupt | None = None,
    cloud_lost: ChaperoneError | None = None,
    generation_id: str = "",
    explain: bool = False,
    known_to_cloud: tuple[SessionId, int] | None = None,
    wish: Wish | None = None,
    condition: Callable[[Encoding], None] = lambda encoding: None,
) -> Engine:
    """Build the engine of one generation; `Engine` explains the arguments.

    The planner's mode decides which of them are used: mode `cloud` needs no drafter, and `edge` no connection.
    """
    mode = planner.mode
    return Engine(
        opening,
        limit=limit,
        drafter=drafter if mode.drafts else None,
        routes=routes if mode.connects else (),
        gate=gate,
        planner=planner,
        estimates=estimates,
        risk_model=risk_model,
        corrections=corrections,
        output=output,
        clock=clock,
        settings=settings,
        interrupt=interrupt,
        cloud_lost=cloud_lost,
        generation_id=generation_id,
        explain=explain,
        known_to_cloud=known_to_cloud,
        wish=wish,
        condition=condition,
    )


def engine_settings(
    config: EdgeConfig,
    mode: Mode,
    *,
    max_span_tokens: int,
    vocabulary_size: int = MAX_COUNT + 1,
    warm_start: bool = False,
    max_cloud_share: float | None = None,
    resumed_cloud_tokens: int = 0,
    committed_promises_hold: bool | None = True,
) -> EngineSettings:
    """Return the settings of a generation.

    `max_span_tokens` is the cloud's limit for one Draft. `resumed_cloud_tokens` counts the cloud's own among the
    committed tokens. Only `gated` keeps `max_cloud_share`; raises InvalidRequest if it is combined with retraction.
    """
    cloud, gate = config.cloud, config.gate
    on_deviation = gate.on_deviation if mode is Mode.GATED else OnDeviation.KEEP
    if problem := cloud_share_problem(max_cloud_share, on_deviation):
        raise InvalidRequest(f"max_cloud_share: {problem}")
    return EngineSettings(
        open_deadline_ms=cloud.open_deadline_ms,
        verification_deadline_ms=cloud.verification_deadline_ms,
        max_span_tokens=max_span_tokens,
        vocabulary_size=vocabulary_size,
        reconnect_timeout_ms=cloud.reconnect_timeout_ms,
        continue_without_cloud=continues_alone(config, mode),
        closing_audit=config.closing_audit,
        audit_share=gate.audit_share,
        on_deviation=on_deviation,
        cloud_share=CloudShareLimit(
            max_cloud_share if mode is Mode.GATED else None,
            fails=gate.on_cloud_share == "fail",
            resumed_cloud_tokens=resumed_cloud_tokens,
        ),
        warm_start=warm_start,
        committed_promises_hold=committed_promises_hold,
    )


def continues_alone(config: EdgeConfig, mode: Mode) -> bool:
    """Return whether a generation continues if the cloud is lost. It needs a drafter for that."""
    on_loss = config.cloud.on_loss
    return mode.drafts and (on_loss == "continue" or (on_loss == "default" and mode is Mode.GATED))


def configured_planner(config: EdgeConfig, mode: Mode) -> Planner:
    """Return the planner that the settings name."""
    settings = config.planner
    if settings.policy == "adaptive":
        return AdaptivePlanner(mode, config.gate.request_price_ms)
    # The device waits for each fired token, so collecting several of them gains nothing.
    span_tokens = 1 if mode is Mode.GATED else settings.span_tokens
    return FixedPlanner(
        mode, span_tokens, settings.spans_in_flight, settings.run_ahead_tokens, settings.takeover_tokens
    )


def new_session_id() -> SessionId:
    """Return the id of a new session."""
    return SessionId(uuid.uuid4().hex)


class _Connected(NamedTuple):
    """The ways to the cloud of one generation, or the reason why there are none."""

    routes: Sequence[Route] = ()
    capabilities: Capabilities | None = None
    lost: ChaperoneError | None = None


class Assembly:
    """Builds the engines of one client. They share its model, its connection, its gates and its estimates."""

    def __init__(
        self,
        config: EdgeConfig,
        *,
        cloud: Cloud | None = None,
        planner: Callable[[Mode], Planner] | None = None,
        gate: Callable[[Mode], Gate] | None = None,
        drafter: MakeDrafter = ChoosingDrafter,
        tracer: Any = None,
        folder: Path | None = None,
    ) -> None:
        """Load everything except the model. The arguments are those of `EdgeClient`.

        Raises ModelMissing, ModelCorrupt, GateMismatch or ConfigError.
        """
        folder = pair_folder(config.pair, "edge") if folder is None else folder
        self.config = config
        self.folder = folder
        self.manifest = check_model(config, folder=folder)
        self.tokenizer = Tokenizer.load(folder, self.manifest)
        self.peer = Peer(config.cloud, self.manifest, cloud, tracer)
        self.model = SharedModel(folder, self.manifest, config.device)
        self.encodings = PromptEncodings(self.manifest, config.device)
        self.gates = Gates(config.gate, load_gate(config.gate, self.manifest))
        self._planner = planner
        self._gate = gate
        self._drafter = drafter
        self._estimates = Estimates()
        self._forest_estimates = ForestEstimates()
        self._forest_planners: dict[tuple[object, ...], ForestPlanner] = {}
        self._corrections = CorrectionMemory() if config.device.adapt else None
        self.cloud_context_tokens: int | None = None  # of the last cloud that answered

    async def engine(
        self,
        request: GenerationRequest,
        interrupt: Interrupt,
        caches: ConversationCaches | None = None,
        *,
        generation_id: str = "",
        explain: bool = False,
    ) -> Engine | BeamEngine:
        """Build the engine. Before, connect to the cloud and load the model, if the mode needs them.

        `caches` are those of the generation's conversation; `explain` is as for `Engine`. Raises InvalidRequest, or
        another ChaperoneError that ends the generation.
        """
        mode, prompt_length = request.mode, len(request.prompt.token_ids)
        self.encodings.check(mode)
        session_id = caches.new_session_id() if caches is not None else new_session_id()
        routes, capabilities, lost = await self._connect(request, session_id)
        known_to_cloud = None
        if capabilities is not None:
            self.cloud_context_tokens = capabilities.context_tokens
            if caches is not None and capabilities.kept_texts:
                known_to_cloud = caches.known_to_cloud(request.prompt.token_ids)
        context_tokens = self.context_tokens(mode)
        limit = text_limit(request, self.manifest, context_tokens)
        committed = request.committed_token_ids
        output = EventText(self.tokenizer, request.params.stop, prompt_length, resumed=committed)
        if output.stopped:
            raise InvalidRequest(
                "committed_token_ids: their text already holds a stop string; remove the string from `stop`, or give "
                "the tokens before it"
            )
        if request.params.beams is not None:
            opening = self._opening(request, session_id, capabilities)
            if capabilities is None:
                raise lost or CloudUnavailable("cloud: beams need one, and there is none")
            return await self._beam_engine(
                request,
                request.params.beams,
                opening,
                capabilities,
                routes=routes,
                limit=limit,
                output=output,
                interrupt=interrupt,
                generation_id=generation_id,
                explain=explain,
            )
        wish = self.encodings.wish(mode, request.prompt.token_ids, capabilities)
        sequence = await self._new_sequence(request, caches, wish) if mode.drafts else None
        return assemble(
            self._opening(request, session_id, capabilities),
            engine_settings(
                self.config,
                mode,
                max_span_tokens=capabilities.max_span_tokens if capabilities is not None else 1,
                vocabulary_size=self.manifest.vocabulary_size,
                warm_start=request.warm_start,
                max_cloud_share=request.max_cloud_share,
                resumed_cloud_tokens=request.committed_cloud_tokens,
                committed_promises_hold=request.committed_promises_hold,
            ),
            limit=limit,
            drafter=self._new_drafter(request, sequence) if sequence is not None else None,
            routes=routes,
            gate=self._gate(mode) if self._gate is not None else self.gates.gate(mode, request.promises),
            planner=self._planner(mode) if self._planner is not None else configured_planner(self.config, mode),
            estimates=self._estimates,
            risk_model=self.gates.risk_model(mode, self.tokenizer.token_text, prompt_length, committed),
            corrections=self._corrections_of(mode),
            output=output,
            clock=MonotonicClock(),
            interrupt=interrupt,
            cloud_lost=lost,
            generation_id=generation_id,
            explain=explain,
            known_to_cloud=known_to_cloud,
            wish=wish,
            condition=sequence.condition if sequence is not None else lambda encoding: None,
        )

    async def _beam_engine(
        self,
        request: GenerationRequest,
        params: BeamParams,
        opening: Open,
        capabilities: Capabilities,
        *,
        routes: Sequence[Route],
        limit: int,
        output: OutputText,
        interrupt: Interrupt,
        generation_id: str,
        explain: bool,
    ) -> BeamEngine:
        """Build the engine of a generation with beams."""
        check_max_beams(params, capabilities)
        begun, committed = request.begun_beams, len(request.committed_token_ids)
        if begun is not None:
            check_begun_beams(begun, limit - len(request.prompt.token_ids))
        settings = BeamSettings(
            params.num_beams,
            params.beam_threshold,
            one_cache=params.one_cache,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            running=begun.running if begun is not None else (),
            finished=begun.finished if begun is not None else (),
            stops=bool(request.params.stop),
        )
        sampling, widest = request.params.sampling, params.beam_width or max(_WIDEST_FOREST, params.num_beams)
        drafter = None
        if request.mode.drafts:
            model = OnnxBeams(await self.model.get(), rows=max(widest, params.num_beams))
            drafter = ForestDrafter(
                model, request.prompt.token_ids, sampling, on_forward=self._forest_estimates.drafted
            )
        return BeamEngine(
            replace(opening, committed_token_ids=(), beams=settings),
            mode=request.mode,
            width=params.beam_width,
            limit=limit,
            committed=committed,
            drafter=drafter,
            planner=self._forests(params, searches=not sampling.temperature),
            limits=Limits(widest, _DEEPEST_FOREST, capabilities.max_span_tokens),
            estimates=self._forest_estimates,
            routes=routes,
            output=output,
            new_text=lambda: CommittedText(self.tokenizer, request.params.stop),
            clock=MonotonicClock(),
            settings=engine_settings(
                self.config,
                request.mode,
                max_span_tokens=capabilities.max_span_tokens,
                vocabulary_size=self.manifest.vocabulary_size,
                committed_promises_hold=request.committed_promises_hold,
            ),
            interrupt=interrupt,
            generation_id=generation_id,
            explain=explain,
        )

    def _forests(self, params: BeamParams, *, searches: bool) -> ForestPlanner:
        """Return the planner of generations with such beams, which learn from each other."""
        threshold = params.beam_threshold
        # Rounded, so that there are few planners, whatever thresholds are asked for.
        alike = (params.num_beams, searches, params.one_cache, None if threshold is None else round(threshold, 1))
        learned = Learned(params.num_beams, least=1 if threshold is not None else 0)
        return self._forest_planners.setdefault(alike, ForestPlanner(learned))

    def context_tokens(self, mode: Mode) -> int:
        """Return the tokens that a text may have in this mode, as far as the cloud's limit is known."""
        limits = [self.manifest.context_tokens] if mode.drafts else []
        if mode.connects and not mode.writes_alone and self.cloud_context_tokens is not None:
            limits.append(self.cloud_context_tokens)
        return min(limits, default=self.manifest.context_tokens)

    async def reach(self, session_id: SessionId) -> tuple[Cloud, Capabilities]:
        """Return the cloud for an audit after the text. Raises CloudLost, Overloaded, InternalError or PeerMismatch."""
        reached = await self.peer.connect(session_id)
        self.gates.use_cloud(reached.capabilities)
        return reached.cloud, reached.capabilities

    def control(self, promises: Promises) -> Control | None:
        """Return the control that learns from the audits of texts with these promises; None if the gate has none."""
        learns = self._gate is None and self.config.gate.policy == "budgeted"
        return self.gates.control(promises) if learns else None

    def leave_loop(self) -> None:
        """Drop all objects that belong to an event loop which has ended."""
        self.model.leave_loop()
        self.peer.leave_loop()

    async def close(self) -> None:
        """End the connection and the model's worker; idempotent."""
        await self.peer.close()
        await self.model.close()

    async def _connect(self, request: GenerationRequest, session_id: SessionId) -> _Connected:
        """Return the cloud of a generation, or the reason for its absence; raises if the generation cannot continue."""
        if not request.mode.connects or self.encodings.complete(request.mode, request.prompt.token_ids):
            return _Connected()
        try:
            reached = await self.peer.connect(session_id, request.model_digest)
            if request.mode is Mode.GATED:
                self.gates.use_cloud(reached.capabilities)
        except (CloudLost, Overloaded, InternalError) as error:  # treated like a loss in the middle of a text
            if not continues_alone(self.config, request.mode):
                raise
            return _Connected(lost=error)
        if not request.mode.writes_alone:
            check_reported(request.params, reached.capabilities)
        return _Connected(self.peer.routes(reached), reached.capabilities)

    async def _new_sequence(
        self, request: GenerationRequest, caches: ConversationCaches | None, wish: Wish | None
    ) -> OnnxSequence:
        """Return a sequence, which may hold the beginning of the text. It has branches only if a cloud corrects it."""
        model = await self.model.get()
        branches = 0 if request.mode.writes_alone else _BRANCHES
        sequence = model.new_sequence(branches=branches, prompt_cache=caches.prompt if caches is not None else None)
        text = (*request.prompt.token_ids, *request.committed_token_ids)
        sequence.rewind(min(common_prefix(sequence.token_ids, text), len(text) - 1))
        if model.graph.encoding_width:
            sequence.condition(wish.held if wish is not None else None)
        return sequence

    def _new_drafter(self, request: GenerationRequest, sequence: OnnxSequence) -> Drafter:
        drafter = self._drafter(sequence, request.params.sampling)
        if (wanted := request.params.reported_logprobs) is not None:
            try:
                drafter.top_logprobs = wanted
            except AttributeError:  # it is frozen, or has slots
                drafter.close()
                raise InvalidRequest(
                    f"logprobs: {type(drafter).__name__} takes no top_logprobs; leave it out, or use ChoosingDrafter"
                ) from None
        if (corrections := self._corrections_of(request.mode)) is not None:
            return AdaptedDrafter(drafter, corrections, held=sequence.token_ids)
        return drafter

    def _corrections_of(self, mode: Mode) -> CorrectionMemory | None:
        """Return the memory that a generation uses and teaches, if it is on.

        Only `exact` has one: there the cloud checks each token. In `gated` a remembered token that the gate skips would
        be final with a risk that no gate was calibrated for.
        """
        return self._corrections if mode is Mode.EXACT else None

    def _opening(self, request: GenerationRequest, session_id: SessionId, capabilities: Capabilities | None) -> Open:
        return Open(
            session_id=session_id,
            tokenizer_digest=self.manifest.tokenizer_digest,
            sampling=request.params.sampling,
            max_new_tokens=request.params.max_new_tokens,
            eos_token_ids=self.manifest.eos_token_ids,
            prompt_token_ids=request.prompt.token_ids,
            committed_token_ids=request.committed_token_ids,
            model_digest=capabilities.model_digest if capabilities is not None else "",
            top_logprobs=request.params.reported_logprobs,
        )
