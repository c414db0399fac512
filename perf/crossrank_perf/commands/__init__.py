"""The subcommands of `crossrank` that this package provides, one module each."""
