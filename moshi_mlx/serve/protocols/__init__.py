"""The protocols as pure functions: bytes and events to values, and back."""
