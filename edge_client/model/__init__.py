"""The small model on ONNX Runtime, and how uncertain it is."""
