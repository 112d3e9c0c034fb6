"""The version of the package, for code that its ``__init__`` imports."""

__version__ = "0.1.0"
