"""The error of every reader."""


class RawDataError(ValueError):
    """A raw file that cannot be read; the message names the file and the line or record."""
