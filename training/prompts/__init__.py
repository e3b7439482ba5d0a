"""Prompts for the large model, whose answers are learned."""
