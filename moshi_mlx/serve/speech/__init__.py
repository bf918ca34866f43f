"""The sockets of Kyutai's Rust server for STT and TTS (msgpack), which programs such as Unmute talk to."""

ADDRESSES = {"transcriber": "/api/asr-streaming", "speaker": "/api/tts_streaming"}
"""Where models that only hear or only speak are, by their role."""
