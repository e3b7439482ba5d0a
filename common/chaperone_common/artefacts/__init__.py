"""Models on disk: their folders, manifests, sources and downloads, for both ends."""
