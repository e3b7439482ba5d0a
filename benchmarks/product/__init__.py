"""Measurements of the product as a user installs it: its footprint, and the endpoint."""
