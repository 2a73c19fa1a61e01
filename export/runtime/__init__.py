"""A bundle running: numpy and ONNX Runtime only."""
