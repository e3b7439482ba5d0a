"""The `chaperone-cloud` command."""

from cloud_supervisor.cli.main import main

__all__ = ["main"]
