"""The large model's own answers, with the tokens that it found likely, and with its encodings of the prompts."""
