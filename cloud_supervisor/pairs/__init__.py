"""Pairs of models that a user brings: their entry in the registry, and the check whether they fit together."""
