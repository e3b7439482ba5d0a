"""`chaperone audit`: the audits of texts that lost their cloud."""

from __future__ import annotations

import argparse
import asyncio

from chaperone_common.command.console import Console
from chaperone_common.command.program import EXIT_OK
from edge_client.apps.cli.options import Commands, add_settings, config_of
from edge_client.client import EdgeClient
from edge_client.config import EdgeConfig
from edge_client.journal import JournalState


def add_audit(commands: Commands) -> None:
    """Add the command."""
    what = "have the texts in gate.journal_file audited, with a running cloud"
    audit = commands.add_parser("audit", help=what, description=what)
    add_settings(audit)
    audit.set_defaults(run=_run, closing_audit=False)


def _run(console: Console, arguments: argparse.Namespace) -> int:
    state = asyncio.run(_audit(config_of(arguments)))
    console.line(
        f"{state.audited} texts audited, {state.deviations} of {state.audited_tokens} tokens deviate; "
        f"{state.dropped} texts dropped"
    )
    return EXIT_OK


async def _audit(config: EdgeConfig) -> JournalState:
    async with EdgeClient(config) as client:
        return await client.audit_journal()
