"""The device SDK: `EdgeClient`, and its synchronous twin."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from common.clock import MonotonicClock
from common.config import ModelManifest, load_manifest, pair_folder
from common.errors import CloudLost, InvalidRequest, PromptTooLong, TokenizerMismatch, VersionMismatch
from common.gate import Always, Gate, Never, gate_for
from common.messages import API_VERSION, Capabilities, Open
from common.planner import FixedPlanner
from common.session import Committed, Drafted, Event, Failed, Finished, Retracted
from common.stats import GenerationStats
from common.types import (
    MAX_SEED,
    FinishReason,
    GenerationParams,
    Mode,
    Origin,
    PromptInput,
    SamplingParams,
    SessionId,
)
from edge_client.config import EdgeConfig
from edge_client.engine import Engine, EngineSettings
from edge_client.grpc_link import GrpcCloud
from edge_client.onnx_model import OnnxModel
from edge_client.output import CommittedText
from edge_client.ports import Cloud
from edge_client.text import ChatTemplate, Tokenizer

Prompt = str | Sequence[Mapping[str, Any]] | PromptInput

T = TypeVar("T")

MAX_COUNT = 2**32 - 1  # the wire's whole numbers


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    origins: tuple[Origin, ...]
    finish_reason: FinishReason
    stats: GenerationStats

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as `chaperone generate` writes them."""
        return {
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "text": self.text,
            "origins": [str(origin) for origin in self.origins],
            "finish_reason": str(self.finish_reason),
            "stats": self.stats.to_json(),
        }


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt in tokens, and everything that decides what is written after it."""

    prompt: PromptInput
    params: GenerationParams = GenerationParams()
    mode: Mode = Mode.EXACT
    committed_token_ids: tuple[int, ...] = ()  # of a failed generation that is resumed
    warm_start: bool = False  # for measurements: draft nothing until both ends hold the prompt's KV


class EdgeClient:
    """Writes on the device, supervised by the cloud.

    Models and connections are made when they are first needed and shared by all generations; generations may run at
    the same time. Use it as an async context manager, or call `aclose`.
    """

    def __init__(self, config: EdgeConfig | None = None, *, cloud: Cloud | None = None) -> None:
        """`cloud` replaces the gRPC connection; raises ModelMissing, ModelCorrupt or ConfigError."""
        self.config = config or EdgeConfig()
        self._folder = pair_folder(self.config.pair, "edge")
        self.manifest: ModelManifest = load_manifest(self._folder, role="edge")
        self.tokenizer = Tokenizer.load(self._folder, self.manifest)
        self._template = ChatTemplate.load(self._folder, self.tokenizer)
        self._model: OnnxModel | None = None
        self._cloud = cloud
        self._capabilities: Capabilities | None = None

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """Build a client from a YAML file such as `configs/edge.yaml`."""
        return cls(EdgeConfig.load(path))

    def prepare(self, prompt: Prompt, *, raw: bool = False) -> PromptInput:
        """Turn a prompt into tokens: one user message, a list of messages, or, if `raw`, text as it is.

        Raises InvalidRequest for an empty prompt or malformed messages.
        """
        if isinstance(prompt, PromptInput):
            return prompt
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidRequest("prompt: it is empty; give some text")
            if raw:
                return self._tokenized(prompt)
            prompt = [{"role": "user", "content": prompt}]
        return self._tokenized(self._template.render(prompt))

    def request(
        self,
        prompt: Prompt,
        *,
        mode: Mode | str | None = None,
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
        defaults = self.config.generation
        sampling = SamplingParams(
            temperature=_number("temperature", temperature, defaults.temperature),
            top_p=_number("top_p", top_p, defaults.top_p),
            top_k=_integer("top_k", top_k, defaults.top_k),
            min_p=_number("min_p", min_p, defaults.min_p),
            seed=_integer("seed", seed, defaults.seed, most=MAX_SEED),
        )
        params = GenerationParams(
            sampling, _integer("max_new_tokens", max_new_tokens, defaults.max_new_tokens), _stop(stop, defaults.stop)
        )
        return GenerationRequest(
            self.prepare(prompt, raw=raw),
            params,
            _mode(mode, self.config.mode),
            tuple(committed_token_ids),
            warm_start,
        )

    async def stream(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> AsyncGenerator[Event, None]:
        """Yield what happens, token by token; the last event is Finished or Failed.

        `parameters` are those of `request`. Raises InvalidRequest, PromptTooLong, CloudLost or PeerMismatch before
        the first event; later errors come as Failed. Leaving the iteration cancels the generation.
        """
        request = prompt if isinstance(prompt, GenerationRequest) else self.request(prompt, **parameters)
        engine = await self._engine(request)
        async with aclosing(engine.stream()) as events:
            async for event in events:
                yield event

    async def generate(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> Generation:
        """Generate to the end; raises what a Failed event carries."""
        request = prompt if isinstance(prompt, GenerationRequest) else self.request(prompt, **parameters)
        collected = Collector(request)
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                collected.add(event)
        return collected.result()

    async def aclose(self) -> None:
        """End the connection and the model's worker."""
        if self._cloud is not None:
            await self._cloud.close()
            self._cloud = None
        if self._model is not None:
            self._model.close()
            self._model = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _tokenized(self, text: str) -> PromptInput:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"prompt: character {error.start} is a lone surrogate; give valid Unicode") from None
        return PromptInput(self.tokenizer.encode(text))

    async def _engine(self, request: GenerationRequest) -> Engine:
        context_tokens = self.manifest.context_tokens
        cloud: Cloud | None = None
        if request.mode is not Mode.EDGE:
            try:
                cloud, capabilities = await self._connect()
                context_tokens = min(context_tokens, capabilities.context_tokens)
            except CloudLost:
                if not self._continues_alone(request.mode):
                    raise
        limit = _limit(request, context_tokens)
        model = self._load_model() if request.mode is not Mode.CLOUD else None
        config = self.config
        return Engine(
            self._opening(request),
            limit=limit,
            model=model.new_sequence() if model else None,
            link=cloud.link() if cloud else None,
            gate=_gate(request.mode, config),
            planner=_planner(request.mode, config),
            output=CommittedText(self.tokenizer, request.params.stop, resumed=request.committed_token_ids),
            clock=MonotonicClock(),
            settings=self._settings(request),
        )

    def _settings(self, request: GenerationRequest) -> EngineSettings:
        cloud = self.config.cloud
        return EngineSettings(
            open_deadline_ms=cloud.open_deadline_ms,
            verification_deadline_ms=cloud.verification_deadline_ms,
            takeover_tokens=self.config.planner.takeover_tokens,
            max_span_tokens=self._capabilities.max_span_tokens if self._capabilities else 1,
            continue_without_cloud=self._continues_alone(request.mode),
            closing_audit=self.config.closing_audit,
            warm_start=request.warm_start,
        )

    def _continues_alone(self, mode: Mode) -> bool:
        """Whether a lost cloud ends the generation; the cloud's own mode cannot go on without it."""
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

    def _load_model(self) -> OnnxModel:
        if self._model is None:
            device = self.config.device
            self._model = OnnxModel.load(
                self._folder,
                threads=device.threads,
                allow_spinning=device.allow_spinning,
                vocabulary_size=self.manifest.vocabulary_size,
                context_tokens=self.manifest.context_tokens,
                providers=device.providers,
            )
        return self._model


@dataclass
class Collector:
    """Puts events together again; `result` raises what a Failed event carries."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    text: str = ""
    ending: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Committed():
                self.token_ids.append(event.token_id)
                self.origins.append(event.origin)
                self.text += event.text
            case Finished() | Failed():
                self.text += event.text
                self.ending = event
            case Drafted() | Retracted():
                pass

    def result(self) -> Generation:
        """The generation, once Finished or Failed came."""
        match self.ending:
            case Finished() as finished:
                return Generation(
                    self.request.prompt.token_ids,
                    tuple(self.token_ids),
                    self.text,
                    tuple(self.origins),
                    finished.finish_reason,
                    finished.stats,
                )
            case Failed(error):
                raise error
            case None:
                raise RuntimeError("the generation has not ended")


class SyncEdgeClient:
    """`EdgeClient` for code without an event loop: one private loop thread, the same methods."""

    def __init__(self, config: EdgeConfig | None = None) -> None:
        self._client = EdgeClient(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaperone-client", daemon=True)
        self._thread.start()

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """Build a client from a YAML file such as `configs/edge.yaml`."""
        return cls(EdgeConfig.load(path))

    def prepare(self, prompt: Prompt, *, raw: bool = False) -> PromptInput:
        """See `EdgeClient.prepare`."""
        return self._client.prepare(prompt, raw=raw)

    def request(self, prompt: Prompt, **parameters: Any) -> GenerationRequest:
        """See `EdgeClient.request`."""
        return self._client.request(prompt, **parameters)

    def stream(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> Iterator[Event]:
        """See `EdgeClient.stream`."""
        events = self._client.stream(prompt, **parameters)
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        finally:
            self._run(events.aclose())

    def generate(self, prompt: Prompt | GenerationRequest, **parameters: Any) -> Generation:
        """See `EdgeClient.generate`."""
        return self._run(self._client.generate(prompt, **parameters))

    def close(self) -> None:
        """End connection, model worker and loop thread; idempotent."""
        if self._loop.is_closed():
            return
        self._run(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # on Ctrl-C the work must not go on behind the caller's back
            raise


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


def _limit(request: GenerationRequest, context_tokens: int) -> int:
    prompt_length = len(request.prompt.token_ids)
    if prompt_length + len(request.committed_token_ids) >= context_tokens:
        raise PromptTooLong(
            f"prompt: {prompt_length + len(request.committed_token_ids)} tokens leave no room in a context of "
            f"{context_tokens}; shorten it"
        )
    limit = min(prompt_length + request.params.max_new_tokens, context_tokens)
    if prompt_length + len(request.committed_token_ids) >= limit:
        raise InvalidRequest(
            f"committed_token_ids: {len(request.committed_token_ids)} tokens are as many as max_new_tokens, "
            f"{request.params.max_new_tokens}; nothing is left to write"
        )
    return limit


def _gate(mode: Mode, config: EdgeConfig) -> Gate:
    if mode is Mode.GATED and config.gate.policy == "always":
        return Always()
    if mode is Mode.GATED and config.gate.policy == "never":
        return Never()
    return gate_for(mode, risk=config.gate.risk)


def _planner(mode: Mode, config: EdgeConfig) -> FixedPlanner:
    planner = FixedPlanner(
        mode, config.planner.span_tokens, config.planner.spans_in_flight, config.planner.run_ahead_tokens
    )
    # A fired token is what the device waits for, so nothing is gained by collecting more of them.
    return replace(planner, span_tokens=1) if mode is Mode.GATED else planner


def _mode(value: Mode | str | None, default: Mode) -> Mode:
    try:
        return default if value is None else Mode(value)
    except ValueError:
        raise InvalidRequest(f"mode: {value!r} is none of {', '.join(Mode)}") from None


def _number(name: str, value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name}: {value!r} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequest(f"{name}: the number is too large") from None


def _integer(name: str, value: object, default: int, *, most: int = MAX_COUNT) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name}: {value!r} is not a whole number")
    if value > most:
        raise InvalidRequest(f"{name}: {value} is more than {most}")
    return value


def _stop(value: str | Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if value is None:
        return default
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) for text in strings):
        raise InvalidRequest(f"stop: {value!r} is neither a string nor a list of strings")
    return tuple(strings)
