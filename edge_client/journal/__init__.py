"""The journal: texts that no audit has reached, kept on the device until a cloud can read them."""

from edge_client.journal.audits import JournalAudits
from edge_client.journal.entry import JournalEntry
from edge_client.journal.journal import Journal, JournalState

__all__ = ["Journal", "JournalAudits", "JournalEntry", "JournalState"]
