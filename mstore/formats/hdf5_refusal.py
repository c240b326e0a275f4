"""How what lists an HDF5 file says that it has too much of something; see `hdf5_worker.py`."""


class TooMuch(Exception):  # noqa: N818
    """The file has more of something than is reasonable."""


def shown(path: str) -> str:
    """A path as part of a message."""
    return ascii(path[:100])
