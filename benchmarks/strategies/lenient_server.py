"""A cloud that is lenient, as BiLD wants it: the real server, around a model that lets near misses stand.

A process of its own, which tells its address as `chaperone-cloud serve` does. Only benchmarks use it: what it answers
is not the cloud's own text.
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
from cloud_supervisor.model.torch_model import TorchModel
from cloud_supervisor.server import Server
from edge_client.model.uncertainty import cross_entropy


class LenientModel(TorchModel):
    """Chooses the chain's next token wherever its cross-entropy is at most `within_nats`, else as any model does.

    The tokens after it are then chosen behind that token, which is in the chain. Branch tokens, and the last token of a
    piece that a long reading is cut into, are followed by the model's own choice.
    """

    within_nats: float = 0.0

    def choose(self, soft: Softmax, sampling: SamplingParams, position: int, drafted: int | None) -> Choice:
        choice = super().choose(soft, sampling, position, drafted)
        if drafted is None or cross_entropy(soft, drafted) > self.within_nats:
            return choice
        return replace(choice, token_id=drafted)


def lenient_model(config: CloudConfig, manifest: ModelManifest, within_nats: float) -> LenientModel:
    """Load the cloud's model of the configured pair; raises as `TorchModel.load` does."""
    folder = pair_folder(config.pair, "cloud")
    model = LenientModel.of_manifest(folder, manifest, dtype=config.dtype, threads=config.threads, device=config.device)
    model.within_nats = within_nats
    return model


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
    args = parser.parse_args()
    config = CloudConfig(pair=args.pair, listen=args.listen, threads=args.threads, dtype=args.dtype)
    asyncio.run(_serve(config, args.within_nats))


if __name__ == "__main__":
    main()
