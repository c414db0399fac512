"""Makes `python -m crossrank_server` the same as `crossrank`."""

from crossrank_server.cli import main

main()
