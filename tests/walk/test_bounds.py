"""What a process holds for those who ask, by many real requests at once: bodies, answers, streams of one token."""
