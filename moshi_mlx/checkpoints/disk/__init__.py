"""Files that are read with care, and folders that are written whole or not at all."""
