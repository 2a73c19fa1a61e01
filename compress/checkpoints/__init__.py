"""A checkpoint's folder, its safetensors, and the formats of quantized matrices in it."""
