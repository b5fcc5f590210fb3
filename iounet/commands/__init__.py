"""The command-line interface: one module per command, each with an argument parser and one call."""

import os

# By default, waiting OpenMP threads spin, which makes a command two to four times slower on a machine with other load.
# OpenMP reads this variable once, so it must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
