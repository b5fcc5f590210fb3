"""How fast everything is: each module is a command, ``python -m benchmarks.operator``, from the repository root."""
