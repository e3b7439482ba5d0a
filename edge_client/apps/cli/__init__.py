"""The `chaperone` command."""
