"""What models of other roles do over the same step: transcribe (STT), translate (Hibiki), speak (TTS)."""
