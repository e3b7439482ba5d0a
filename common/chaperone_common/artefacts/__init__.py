"""Models on disk: where they lie, what they are, and where they come from."""
