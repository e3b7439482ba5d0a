"""The parts of a host: entrance, weights, process, monitoring, and calls of gRPC."""
