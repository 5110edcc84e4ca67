"""The version of phosphene."""

__version__ = "0.1.0"
