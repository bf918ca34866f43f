"""The commands, a line each."""

COMMANDS = {
    "local": "talk with Moshi in this terminal, or let it answer a sound file",
    "convert": "convert, quantize, inspect and compare checkpoints",
    "train": "fine-tune on recorded conversations",
}
