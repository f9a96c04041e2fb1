"""A bundle as ONNX graphs with a manifest, checked against PyTorch."""
