"""Checkpoints in files: found, read, translated, quantized, written."""
