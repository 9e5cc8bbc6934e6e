"""Messages for the broker: stored first, sent second, deleted after the acknowledgement."""
