"""A local page that shows a loose box tighten step by step: `tighten` computes the steps, `make_server` serves it."""

from .server import address_of, make_server
from .steps import Steps, tighten

__all__ = ["Steps", "address_of", "make_server", "tighten"]
