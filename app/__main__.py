"""`python -m app` is `tasktrail`."""

from app.cli import main

main()
