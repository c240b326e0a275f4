"""The version of the package; the format of repositories has its own number in `rootlog`."""

__version__ = "0.1.0"
