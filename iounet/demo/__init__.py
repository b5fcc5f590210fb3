"""A page on which a loose box tightens step by step: `tighten` computes it, `make_server` serves it."""

from .server import address_of, make_server
from .steps import Steps, tighten

__all__ = ["Steps", "address_of", "make_server", "tighten"]
