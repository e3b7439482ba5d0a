"""A lenient cloud for BiLD: the real server, with a model that accepts near misses.

It is a separate process and prints its address as `chaperone-cloud serve` does. Only benchmarks use it: its answers are
not the cloud's own text.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

from chaperone_common.artefacts.folders import pair_folder
from chaperone_common.artefacts.manifest import ModelManifest, load_manifest
from chaperone_common.sampling import Softmax
from chaperone_common.types import Choice, SamplingParams
from cloud_supervisor.assembly import build_cloud
from cloud_supervisor.config import CloudConfig
from cloud_supervisor.model.logits.choosing import Chooser, coupled_choice
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client.model.uncertainty import cross_entropy


def lenient_chooser(within_nats: float) -> Chooser:
    """Choose the chain's own token wherever its cross-entropy is at most `within_nats`, else by the protocol's rule.

    The next tokens are then chosen after that token, which is in the chain. Branch tokens, and the last token of a
    chunk of a long request, are followed by the protocol's choice.
    """

    def choose(soft: Softmax, sampling: SamplingParams, position: int, drafted: int | None) -> Choice:
        choice = coupled_choice(soft, sampling, position, drafted)
        if drafted is None or cross_entropy(soft, drafted) > within_nats:
            return choice
        return replace(choice, token_id=drafted)

    return choose


def lenient_model(config: CloudConfig, manifest: ModelManifest, within_nats: float) -> TorchModel:
    """Load the cloud's model of the configured pair; raise as `TorchModel.load` does."""
    return TorchModel.of_manifest(
        pair_folder(config.pair, "cloud"),
        manifest,
        dtype=config.dtype,
        threads=config.threads,
        device=config.device,
        chooser=lenient_chooser(within_nats),
    )


async def _serve(config: CloudConfig, within_nats: float) -> None:
    manifest = load_manifest(pair_folder(config.pair, "cloud"), role="cloud")
    server = Server(config, build_cloud(config, lenient_model(config, manifest, within_nats), manifest))
    print(f"lenient cloud: serving {config.pair} on {await server.start()}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies.lenient_server")
    parser.add_argument("--within-nats", type=float, required=True)
    parser.add_argument("--pair", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-sharing", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    config = CloudConfig(
        pair=args.pair, listen=args.listen, threads=args.threads, dtype=args.dtype, kv_sharing=args.kv_sharing
    )
    asyncio.run(_serve(config, args.within_nats))


if __name__ == "__main__":
    main()
