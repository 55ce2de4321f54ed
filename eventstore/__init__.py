"""What happened: the facts, the log, and everything that speaks NATS."""
