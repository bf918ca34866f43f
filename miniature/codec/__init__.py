"""The miniature's codec: its speech, its losses, its training."""
