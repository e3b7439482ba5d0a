"""Training of the drafter on the large model's answers."""
