"""What both commands share: the console, arguments and the entry points."""
