"""Which session's tokens the model reads next."""
