"""The version of this package, for whoever writes it into a file or a page."""

__version__ = "0.1.0"
