"""The version of the package; the format of repositories has its own number in `root`."""

__version__ = "0.1.0"
