"""Adaptive computation: the study of Duo-LLM on one network, from seeds."""
