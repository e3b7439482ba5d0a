"""Observers of a cloud: metrics, traces and logs. No output of theirs holds a prompt, a token id or a session id."""
