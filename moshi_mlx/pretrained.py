"""`from_pretrained` and `save_pretrained`: Hugging Face's names for reading and writing checkpoints."""

from __future__ import annotations
