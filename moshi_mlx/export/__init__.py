"""A model for programs in other languages: its step as graphs in text, which `embed/` runs on MLX from C, C++ and Swift."""
