"""The device SDK: `EdgeClient` generates text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self, Unpack

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.errors import InvalidRequest
from chaperone_common.frames import Capabilities
from chaperone_common.partial import PartialGeneration
from chaperone_common.suggestion import cut
from chaperone_common.types import Mode, PromptInput, Proposal, SamplingParams
from edge_client.assembly import Assembly
from edge_client.cancellation import Cancellation
from edge_client.config import EdgeConfig, checked_config, pretrained, refuse_arguments
from edge_client.conversation import Conversation, Message, OnOverflow
from edge_client.events import Event
from edge_client.gate import Gate, Totals
from edge_client.generation import Generation, GenerationRequest, Prompt, Streamer
from edge_client.journal import JournalState
from edge_client.model.drafter import ChoosingDrafter
from edge_client.parameters import RequestParameters, parse_promises, parse_request
from edge_client.planner import Planner
from edge_client.ports import Cloud, Drafter, DraftModel
from edge_client.running import Run, Runs, final_text, whole
from edge_client.text import ChatTemplate, PromptReader, Tokenizer


class EdgeClient:
    """Generates text on the device, supervised by a large model in the cloud.

        async with EdgeClient.from_config("edge.yaml") as client:
            generation = await client.generate("Write a haiku.", mode="gated", max_new_tokens=40)
            print(generation.text)

    All generations share one model, and one connection to each address of the cloud. They are made when they are first
    needed. Generations may run at the same time, on one event loop. Use the client as an async context manager, or call
    `aclose`.

    A client may be used again on another event loop after the first loop has ended. After a fork, make a new client in
    the child process.

    Attributes:
        config: The settings.
        manifest: The description of the device's model: its files, context and vocabulary.
        tokenizer: The tokenizer of the pair.
    """

    config: EdgeConfig
    manifest: ModelManifest
    tokenizer: Tokenizer

    def __init__(
        self,
        config: EdgeConfig | None = None,
        *,
        cloud: Cloud | None = None,
        planner: Callable[[Mode], Planner] | None = None,
        gate: Callable[[Mode], Gate] | None = None,
        drafter: Callable[[DraftModel, SamplingParams], Drafter] | None = None,
        tracer: Any = None,
        folder: Path | None = None,
        **unknown: Never,
    ) -> None:
        """Load the tokenizer and the gate of the configured pair.

        Args:
            config: The settings; the defaults if None.
            cloud: Replaces the gRPC connections, and all addresses.
            planner: Makes the planner of each generation from its mode, in place of the configured one.
            gate: Makes the gate of each generation from its mode, in place of the configured one. That gate has to keep
                the promises of the mode.
            drafter: Makes the drafter of each generation, in place of `ChoosingDrafter`. For experiments.
            tracer: An OpenTelemetry `Tracer`. Each generation and each verification becomes a span, whose trace the
                cloud continues. Needs `opentelemetry-api`.
            folder: The folder of the device's model; by default that of the pair among the pulled models.
            unknown: Any other argument raises InvalidRequest, which names the call that takes it.

        Raises ModelMissing, ModelCorrupt, GateMismatch or ConfigError.
        """
        refuse_arguments("EdgeClient", unknown if not isinstance(cloud, str) else {"cloud": cloud})
        self.config = checked_config(config)
        self._assembly = Assembly(
            self.config,
            cloud=cloud,
            planner=planner,
            gate=gate,
            drafter=drafter or ChoosingDrafter,
            tracer=tracer,
            folder=folder,
        )
        self.manifest = self._assembly.manifest
        self.tokenizer = self._assembly.tokenizer
        template = ChatTemplate.load(self._assembly.folder, self.tokenizer)
        self._prompts = PromptReader(self.tokenizer, template, context_tokens=self.manifest.context_tokens)
        self._runs = Runs(self._assembly)

    @classmethod
    def from_config(cls, path: Path | str) -> Self:
        """Build a client from a YAML file such as `edge.yaml`."""
        return cls(EdgeConfig.load(path))

    @classmethod
    def from_pretrained(
        cls,
        pair_or_path: str | Path,
        *,
        cloud: str | Sequence[str] | None = None,
        config: EdgeConfig | None = None,
    ) -> Self:
        """Build a client for a pair of models, by its name or by the path of its folder.

            client = EdgeClient.from_pretrained("default", cloud="cloud.example.com:50151")

        Args:
            pair_or_path: The name of a pair, or a path to the folder of a pair, or of its device model. A relative path
                that looks like a name needs `./` before it.
            cloud: Address of the cloud, or several; by default the configured one.
            config: All other settings.

        Raises ConfigError, or as the constructor does.
        """
        settings, folder = pretrained(pair_or_path, cloud, checked_config(config))
        return cls(settings, folder=folder)

    def prepare(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        parse_special: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> PromptInput:
        """Tokenize a prompt. Any thread may call this.

        Args:
            prompt: One user message, or a list of messages as for transformers' `apply_chat_template`, or tokens.
            raw: Read a string without the chat template. Text such as `<|im_end|>` in it becomes a control token.
            parse_special: In messages, read text such as `<|im_end|>` as a control token, not as ordinary text.
            tools: JSON schemas of tools, for the chat template.

        Raises InvalidRequest for an empty prompt, for malformed messages or tools, and for messages that the chat
        template of the model does not support.
        """
        return self._prompts.tokens(prompt, raw=raw, parse_special=parse_special, tools=tools)

    def request(self, prompt: Prompt | PartialGeneration, **parameters: Unpack[RequestParameters]) -> GenerationRequest:
        """Check parameters and fill in the configured defaults; see `RequestParameters`.

        `prompt` is as for `prepare`, or the `partial` of an error, which resumes that generation. A resumed generation
        continues as if nothing had happened, and keeps its sampling parameters. Raises InvalidRequest, naming the
        field.
        """
        return parse_request(prompt, parameters, self.config, self.prepare)

    def stream(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        explain: bool = False,
        **parameters: Unpack[RequestParameters],
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a generation, token by token; the last one is Finished or Failed.

        Args:
            prompt: As for `request`, or a `GenerationRequest`, which has all parameters already.
            timeout: Seconds after which the generation ends with Failed(GenerationTimeout).
            cancellation: Ends the generation from elsewhere. Leaving the iteration ends it, too.
            explain: Yield the decisions of the planner, too, as `Planned` events.
            parameters: As for `request`.

        Raises only InvalidRequest; every other failure arrives as the final Failed event.
        """
        return self._run(prompt, parameters, timeout, cancellation, explain).events()

    def stream_text(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> AsyncGenerator[str, None]:
        """Yield the final text of a generation as it comes; the arguments are those of `stream`.

            async for text in client.stream_text("Write a haiku."):
                print(text, end="", flush=True)

        All pieces together are the `text` of the result. Raises the error of a Failed event, as `generate` does.
        """
        return final_text(self._run(prompt, parameters, timeout, cancellation).events())

    async def generate(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        *,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        streamer: Streamer | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Generation:
        """Generate to the end and return the result.

        Args:
            prompt: As for `stream`, and so are `timeout`, `cancellation` and `parameters`.
            timeout: Seconds after which it raises GenerationTimeout.
            cancellation: Ends the generation from elsewhere, with Cancelled.
            streamer: Receives the token ids of the prompt and each final token by `put`, and the end by `end`, such as
                transformers' `TextStreamer`. It must not block: it is called on the event loop. `stream_text` needs
                none.
            parameters: As for `request`.

        Raises the error of a Failed event. Its `partial` holds the final tokens: `generate(error.partial)` resumes.
        """
        run = self._run(prompt, parameters, timeout, cancellation)
        return await whole(run, run.events(), streamer)

    def conversation(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Message] = (),
        on_overflow: OnOverflow = "refuse",
        in_place_of: Conversation | None = None,
        **parameters: Unpack[RequestParameters],
    ) -> Conversation:
        """Begin a conversation, whose turns read only what is new.

        Args:
            system: The first message, which instructs the model.
            messages: Further messages that were said before.
            on_overflow: If a turn's prompt and `max_new_tokens` do not fit into the context: `refuse` the turn as soon
                as no token fits, with PromptTooLong; `drop_oldest` drops the oldest turns; `cloud` has the large model
                write alone, if its context is longer and the mode allows it.
            in_place_of: A conversation that goes on in this one. What both ends hold of it moves here.
            parameters: As for `request`. They hold for each turn, which may replace all but `tools` and
                `parse_special`.

        Raises InvalidRequest.
        """
        return Conversation(
            self,
            self._runs,
            self._prompts,
            system=system,
            messages=messages,
            on_overflow=on_overflow,
            in_place_of=in_place_of,
            parameters=parameters,
        )

    async def load(self) -> None:
        """Load the device's model before the first generation needs it; raises ModelError or ConfigError."""
        self._runs.enter_loop()
        await self._assembly.model.get()

    async def proposals(self, request: GenerationRequest, token_ids: Sequence[int]) -> list[Proposal]:
        """Return the proposals of the device's model at each position of a given text.

        The text is the prompt of the request, then `token_ids`. The cloud is not asked.
        """
        self._runs.enter_loop()
        model = await self._assembly.model.get()
        drafter = ChoosingDrafter(model.new_sequence(), request.params.sampling)
        try:
            proposals = [await drafter.step(request.prompt.token_ids)]
            proposals += await drafter.read(token_ids[:-1])
        finally:
            drafter.close()
        return proposals[: len(token_ids)]

    async def capabilities(self) -> Capabilities:
        """Return the cloud's models and limits; raises CloudLost or PeerMismatch."""
        self._runs.enter_loop()
        return (await self._assembly.peer.connect()).capabilities

    def totals(self, *, catch: float | None = None, max_deviation: float | None = None) -> Totals:
        """Return token counts over all `gated` generations of this client with these promises.

        None means the configured value.
        """
        promises = parse_promises({"catch": catch, "max_deviation": max_deviation}, self.config.gate)
        return self._assembly.gates.control(promises).totals

    @property
    def journal(self) -> JournalState | None:
        """Counts of the journal of unaudited texts; None without `gate.journal_file`."""
        return self._runs.journal.state if self._runs.journal is not None else None

    async def audit_journal(self) -> JournalState:
        """Have all texts in the journal audited now, and return its counts.

        The journal is also audited in the background, between the generations that reach a cloud. Raises InvalidRequest
        without `gate.journal_file`, and CloudLost, Overloaded, InternalError or PeerMismatch; the texts that are left
        then stay in the journal.
        """
        self._runs.enter_loop()
        if self._runs.journal is None:
            raise InvalidRequest("gate.journal_file: it is null, so there is no journal to audit; name a file")
        return await self._runs.journal.audit_all()

    def token_text(self, token_id: int) -> str:
        """Return the text of one token alone; bytes of an incomplete character become U+FFFD."""
        return self.tokenizer.token_text(token_id)

    async def aclose(self) -> None:
        """End running generations with Failed(Cancelled), close the connection, and stop the model's worker.

        Waits briefly for pending audits.
        """
        if self._runs.forked:  # models and connections belong to the parent process
            return
        self._runs.enter_loop()
        await self._runs.close()
        await self._assembly.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _run(
        self,
        prompt: Prompt | PartialGeneration | GenerationRequest,
        parameters: RequestParameters,
        timeout: float | None,
        cancellation: Cancellation | None,
        explain: bool = False,
    ) -> Run:
        async def request() -> GenerationRequest:
            if not isinstance(prompt, GenerationRequest):
                # Tokenizing a long prompt takes seconds. Other generations continue during that time.
                return await asyncio.to_thread(self.request, prompt, **parameters)
            if parameters:
                raise InvalidRequest(
                    f"{cut(', '.join(parameters))}: a GenerationRequest has all parameters already; pass them to "
                    "`request`"
                )
            return prompt

        return Run(self._runs, request, timeout=timeout, cancellation=cancellation, explain=explain)
