"""What every command shares: its flags, its progress, the ways to end it."""
