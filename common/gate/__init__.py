"""Gates: the policies that decide, token by token, whether to skip or to fire."""

from common.gate.policies import Always, Gate, Never, Threshold, gate_for

__all__ = ["Always", "Gate", "Never", "Threshold", "gate_for"]
