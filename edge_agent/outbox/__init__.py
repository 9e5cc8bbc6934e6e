"""What must not be lost: stored first, sent second, forgotten upon acknowledgement."""
