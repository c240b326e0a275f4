"""Every error mstore raises, by what the user can do about it.

A message names what was being read or written and, where there is one, the next step.
`hint` holds that next step apart from the fact, so that a terminal can set it on a line of its own.
"""


class MstoreError(Exception):
    """Root of all errors of this package; `hint` is the next step for the user, or None."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class NotFoundError(MstoreError, KeyError):
    """What was named does not exist: a revision, a file, a tensor, a stored object."""


class NoRepositoryError(NotFoundError):
    """There is no repository at this place."""


class ConflictError(MstoreError):
    """Someone else changed the same thing first, or work would be overwritten."""


class InvalidInputError(MstoreError, ValueError):
    """The caller's value cannot be used: a bad name, an object that cannot be stored, …"""


class FormatError(MstoreError):
    """A file does not keep the rules of its own format."""


class UnsafeInputError(MstoreError):
    """Interpreting this input would run code or touch something outside it."""


class LimitExceededError(MstoreError):
    """Input asks for more memory, depth or entries than is reasonable."""


class CorruptDataError(MstoreError):
    """Stored data is damaged: a checksum, a length or a record does not agree."""


class UnsupportedVersionError(MstoreError):
    """The repository was written by a newer mstore than this one."""


class StorageError(MstoreError):
    """The place that holds the repository failed: permission, full disk, read error."""


class DurabilityError(StorageError):
    """The operating system could not promise that written data is on the disk."""
