"""Rows of logits that stay on the model's device: choices and scores from them."""
