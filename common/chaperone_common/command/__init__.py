"""The parts that all commands share: console, parser, exit codes and entry points."""
