"""The commands that `pip install` makes: a parser each, and one call."""

import os

# Threads of OpenMP that wait for each other would keep their cores busy: on a machine that has other work to do, too, a
# command takes two to four times as long. It has to be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
