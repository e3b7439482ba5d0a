"""Gates: the policies that decide, token by token, whether to skip or to fire."""

from edge_client.gate.budgeted import Budgeted, Entry, Ledger
from edge_client.gate.cloud_share import NO_LIMIT, CloudShareGuard, CloudShareLimit
from edge_client.gate.control import Control, Totals
from edge_client.gate.features import FEATURES, FEATURES_VERSION, Features, TokenKind
from edge_client.gate.held_out import HeldOutRisks
from edge_client.gate.policies import Always, Gate, GateUntilClosed, Never, Threshold

__all__ = [
    "FEATURES",
    "FEATURES_VERSION",
    "NO_LIMIT",
    "Always",
    "Budgeted",
    "CloudShareGuard",
    "CloudShareLimit",
    "Control",
    "Entry",
    "Features",
    "Gate",
    "GateUntilClosed",
    "HeldOutRisks",
    "Ledger",
    "Never",
    "Threshold",
    "TokenKind",
    "Totals",
]
