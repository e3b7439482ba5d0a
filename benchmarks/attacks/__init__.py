"""A device next to attackers of its service: text and speed."""
