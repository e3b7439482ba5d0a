"""Gain of a device that adapts to the corrections of the cloud."""
