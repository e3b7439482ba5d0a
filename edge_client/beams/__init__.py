"""Beams on the device: what to draft, and when to ask the cloud."""
