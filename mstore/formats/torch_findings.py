"""What loading a file of PyTorch would do, as its pickles say."""

from collections.abc import Iterable
from dataclasses import replace

from mstore.formats.base import Finding
from mstore.formats.pickle_file import Deed
from mstore.formats.pickle_walk import ASKS


def told(deeds: Iterable[Deed], member: str = "") -> list[Finding]:
    """The deeds of a pickle as findings; `member` is where in the file it is.

    That it asks for objects which are kept elsewhere is not told: the file has them, its storages.
    """
    found = [deed.finding() for deed in deeds if deed.what != ASKS]
    return [replace(one, where=f"{member}, {one.where}") for one in found] if member else found
