"""The error of data that cannot be used."""


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the file, the item and the cure.

    Attributes:
        rule: the rule broken, in a few words that are the same for all items that break it; may be empty.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        # A DataLoader raises a worker's error anew, with the worker's traceback as its message. At the end of
        # that is our own, which is all that the user needs.
        if message.startswith("Caught DataError in DataLoader worker"):
            message = message.rpartition("DataError: ")[2].rstrip()
        super().__init__(message)
        self.rule = rule
