"""Gates: the policies that decide, token by token, whether to skip or to fire."""

from common.gate.budgeted import Budgeted, Entry, Ledger
from common.gate.calibration import Calibration
from common.gate.control import Control, Promises, Totals
from common.gate.features import FEATURES, FEATURES_VERSION, Features, TokenKind
from common.gate.policies import Always, Gate, Never, Threshold

__all__ = [
    "FEATURES",
    "FEATURES_VERSION",
    "Always",
    "Budgeted",
    "Calibration",
    "Control",
    "Entry",
    "Features",
    "Gate",
    "Ledger",
    "Never",
    "Promises",
    "Threshold",
    "TokenKind",
    "Totals",
]
