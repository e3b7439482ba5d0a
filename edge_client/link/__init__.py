"""The connection to the cloud."""
