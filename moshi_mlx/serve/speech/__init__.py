"""The sockets of Kyutai's Rust server for STT and TTS (msgpack), which programs such as Unmute talk to."""
