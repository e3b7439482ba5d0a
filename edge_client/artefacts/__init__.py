"""The models on this device: their sources, their transfer, and their state on disk."""
