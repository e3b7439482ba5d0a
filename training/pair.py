"""The two models of a pair, before they are converted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chaperone_common.artefacts.registry import load_registry
from cloud_supervisor.pairs.models import PairModel, temporary_models


@contextmanager
def models_of(pair: str) -> Iterator[tuple[PairModel, PairModel]]:
    """Yield the device's and the cloud's model of a pair. Raises ConfigError for an unknown name."""
    with temporary_models(load_registry().pair(pair)) as models:
        yield models["edge"], models["cloud"]
