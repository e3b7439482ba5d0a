"""The devices that torch can compute on here, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chaperone_common.errors import ConfigError


def check_device(name: str, here: Sequence[str] | None = None) -> torch.device:
    """Return the device of that name; raises ConfigError unless it is in `here`, by default `available_devices`.

    A kind alone, like cuda, means the first device of that kind.
    """
    known = available_devices() if here is None else here
    try:
        device = torch.device(name)
    except RuntimeError:  # torch does not know the name
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in {*known, "cpu:0"}:
        raise ConfigError(f"device: {name!r} is not on this machine; there is {', '.join(known)}")
    return device


def available_devices() -> list[str]:
    """Return the processor, `cpu`, and each accelerator that works, like `cuda:0`."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]
