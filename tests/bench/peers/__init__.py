"""The same work on what people use instead. Each runs in a virtual environment of its own; `servers/` is theirs."""
