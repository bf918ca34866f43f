"""What a conversation is: its step, its state over time, its words."""
