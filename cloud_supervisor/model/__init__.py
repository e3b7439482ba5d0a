"""The large model on torch."""
