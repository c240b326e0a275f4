"""HDF5 files in memory, and what is told of them."""

import io

import h5py

from mstore.formats.base import BytesReader
from mstore.formats.hdf5 import Hdf5Format


def write(make, libver="earliest", **options):
    """The bytes of a file that `make` fills, with these options of h5py."""
    data = io.BytesIO()
    with h5py.File(data, "w", libver=libver, **options) as file:
        make(file)
    return data.getvalue()


def examine(data):
    return Hdf5Format().examine(BytesReader(data))


def findings(data):
    return Hdf5Format().findings(BytesReader(data))
