"""A model's step as graphs in text, which `embed/` runs on MLX for apps in C, C++ and Swift."""
