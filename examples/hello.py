"""Print one answer: `python examples/hello.py [CONFIG]`, with a cloud running (`chaperone-cloud serve`)."""

import sys

from edge_client import SyncEdgeClient

with SyncEdgeClient.from_config(sys.argv[1] if len(sys.argv) > 1 else "edge.yaml") as client:
    result = client.generate("Write a haiku about latency.", mode="exact", max_new_tokens=64)
    print(result.text)
