"""The order in which requests reach the model, and the model's thread."""
