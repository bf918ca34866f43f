"""What this computer can hold, found out before a conversation begins."""
