"""The KV caches of sessions."""
