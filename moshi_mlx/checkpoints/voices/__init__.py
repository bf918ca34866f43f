"""The voices of a checkpoint: where they lie, and files of PyTorch read without PyTorch."""
