"""The settings of a repository: one place for what they are called and may be.

They stand in the root, so every writer knows them and the reflog tells who changed what.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from mstore.errors import InvalidInputError

SettingValue = bool | int | str
"""What a setting may be; all those there are today are bool."""

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for everybody who writes to a repository.

    `refuse_unsafe` is whether a commit is refused when a file of it would run code when loaded.
    """

    refuse_unsafe: bool = False

    @classmethod
    def of(cls, stored: Mapping[str, SettingValue]) -> "Settings":
        """Those that a root holds, without the ones only a later mstore knows.

        Raises TypeError for one of another type.
        """
        values: dict[str, bool] = {}
        for field in fields(cls):
            value = stored.get(setting_name(field.name), field.default)
            if not isinstance(value, bool):
                raise TypeError(f"the setting {setting_name(field.name)} is {value!r}")
            values[field.name] = value
        return cls(**values)

    def refuses(self, wanted: bool | None) -> bool:
        """Whether a commit refuses unsafe files: as it was `wanted` for it, else by the setting."""
        return self.refuse_unsafe if wanted is None else wanted

    def items(self) -> dict[str, bool]:
        """All of them by the names that they have outside of Python: `refuse-unsafe`."""
        return {setting_name(field.name): getattr(self, field.name) for field in fields(self)}


def setting_name(field: str) -> str:
    """How a setting is called outside of Python."""
    return field.replace("_", "-")


def check_setting(name: str) -> str:
    """`name`, if there is such a setting; raises InvalidInputError with those there are."""
    known = Settings().items()
    if name not in known:
        raise InvalidInputError(
            f"there is no setting {name!r}", hint=f"those there are: {', '.join(known)}"
        )
    return name


def parse_setting(name: str, text: str) -> bool:
    """The value of the setting `name` that a person writes as `text`; InvalidInputError if none."""
    check_setting(name)
    if (value := _WORDS.get(text.lower())) is None:
        raise InvalidInputError(f"{name} cannot be {text!r}", hint="it is true or false")
    return value


def with_setting(
    stored: Mapping[str, SettingValue], name: str, value: bool | None
) -> dict[str, SettingValue]:
    """What a root holds, with a setting changed, or as if it had never been set when None."""
    check_setting(name)
    changed = {other: kept for other, kept in stored.items() if other != name}
    if value is not None:
        changed[name] = value
    return changed
