"""Batches: one request per line of a JSONL file, one result per line of another."""
