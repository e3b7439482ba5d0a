"""Texts that no trace holds: the models are asked for their answers, several texts at once, and the answers are kept.

A trace holds one text for each prompt, the cloud's. Only the models can answer after a deviation that was kept, and so
only they show the quality of a strategy's texts. Here real engines write in virtual time, and their requests are
answered in batches and written to a file. The next strategy asks only where its texts are new.
"""
