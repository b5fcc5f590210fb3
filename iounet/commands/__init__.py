"""The commands that `pip install` makes: a parser each, and one call."""
