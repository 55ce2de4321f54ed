"""What it means: the folds of the log."""
