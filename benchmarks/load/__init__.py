"""Many devices on one service: latency, throughput and memory."""
