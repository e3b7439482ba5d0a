"""What the large model is asked, to learn from its answers."""
