"""The commands, a line each."""

COMMANDS = {
    "local": "talk with Moshi in this terminal, or let it answer a sound file",
    "transcribe": "write down what is said, with times: sound files or the microphone, with an STT model",
    "translate": "translate speech into speech while it is said, with a Hibiki: sound files or the microphone",
    "say": "say a text in a voice, as it comes, with a TTS model",
    "convert": "convert, quantize, inspect and compare checkpoints",
    "export": "write a model's step as graphs, for apps in C, C++ and Swift",
    "doctor": "find out whether this machine can talk with Moshi, with a report to paste into an issue",
    "serve": "serve Moshi to browsers and programs, many conversations at once",
    "local_web": "talk with Moshi in this machine's browser",
    "models": "list, fetch and remove the models on this disk",
    "train": "fine-tune on recorded conversations",
}
