"""Where the models come from, and how they become what device and cloud run: see `pull`."""
