"""Texts that no trace holds: both models are asked what they say after them, many texts at once, and it is remembered.

A trace knows one text of each prompt, the cloud's. What becomes of a text once a deviation is kept, and so what a
strategy's texts are worth, only the models can tell. Here real engines write in virtual time, and what they ask the
models is answered in batches and written down, so that the next strategy asks only where its texts are new.
"""
