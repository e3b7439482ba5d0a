"""Beams: speed and quality against one text, and against beams by the large model alone."""
