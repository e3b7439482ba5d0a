"""The place where configuration, model and manifest become a cloud."""

from __future__ import annotations

from dataclasses import dataclass

from chaperone_common.artefacts.manifest import ModelManifest
from chaperone_common.clock import MonotonicClock
from chaperone_common.frames import API_VERSION, Capabilities
from chaperone_common.ranges import MAX_TOP_LOGPROBS
from cloud_supervisor.admission import Admission
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.kv.store import KvStore
from cloud_supervisor.model.ports import TargetModel
from cloud_supervisor.observation import Observer, Observers
from cloud_supervisor.scheduling.runner import ModelRunner
from cloud_supervisor.supervisor import Supervisor
from cloud_supervisor.transfers.device_model import DeviceModel
from cloud_supervisor.transfers.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Cloud:
    """A supervisor and the model's runner below it, for any host: a gRPC server, a test or a benchmark.

    `transfers` send the device's model of the pair.
    """

    supervisor: Supervisor
    runner: ModelRunner
    transfers: Transfers

    async def close(self) -> None:
        """Refuse new and waiting requests, let the running forward finish, and end the model's thread."""
        await self.runner.close()


def build_cloud(
    config: CloudConfig, model: TargetModel, manifest: ModelManifest, observer: Observer | None = None
) -> Cloud:
    """Assemble a cloud, without starting anything; raises ConfigError for limits that serve nobody."""
    limits, clock, observer = config.limits, MonotonicClock(), observer or Observers()
    budget_bytes = int(config.kv_budget_mib * 2**20)
    kv_store = KvStore(
        model.kv_pool, budget_bytes=budget_bytes, bytes_per_token=model.kv_bytes_per_token, sharing=config.kv_sharing
    )
    runner = ModelRunner(
        model,
        kv_store,
        max_queue=limits.max_queue,
        step_tokens=limits.step_tokens,
        step_requests=limits.step_requests,
        chunk_tokens=limits.prefill_chunk_tokens,
        prefill_s=limits.prefill_step_ms / 1000,
        observer=observer,
    )
    projector = manifest.projector if limits.max_encoded_tokens and model.encodes else None
    capabilities = Capabilities(
        api_version=API_VERSION,
        model=manifest.model,
        tokenizer_digest=manifest.tokenizer_digest,
        vocabulary_size=manifest.vocabulary_size,
        context_tokens=min(model.context_tokens, kv_store.capacity_tokens),
        max_span_tokens=limits.max_span_tokens,
        model_digest=manifest.digest,
        kept_texts=limits.max_kept_texts,
        max_top_logprobs=MAX_TOP_LOGPROBS,
        projector_digest="" if projector is None else projector.digest,
        max_encoded_tokens=0 if projector is None else limits.max_encoded_tokens,
        max_beams=limits.max_beams,
    )
    admission = Admission(limits, config.quotas, kv_store.capacity_tokens, clock)
    supervisor = Supervisor(runner, capabilities, limits, clock, admission=admission, observer=observer)
    transfers = Transfers(
        DeviceModel(config.pair),
        admission,
        clock,
        max_transfer_s=limits.max_stream_s,
        draining=lambda: supervisor.draining,
    )
    return Cloud(supervisor, runner, transfers)
