"""The loop that writes one text."""
