"""The GenProp teacher: backbone, Selective Content Encoder, Mask Prediction Decoder and their training."""
