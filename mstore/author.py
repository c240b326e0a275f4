"""Who is doing this: MSTORE_AUTHOR, else git's configuration, else the login name."""

import getpass
import os
import subprocess
import time
from functools import cache


def default_author() -> str:
    """The author to record: `$MSTORE_AUTHOR`, git's user.name and user.email, or the login."""
    return os.environ.get("MSTORE_AUTHOR", "").strip() or _from_git() or _login()


def local_zone() -> int:
    """Minutes east of UTC of the local time."""
    return int(time.localtime().tm_gmtoff) // 60


@cache
def _from_git() -> str:
    try:
        found = subprocess.run(
            ["git", "config", "--get-regexp", r"^user\.(name|email)$"],
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = found.stdout.decode("utf-8", "replace").splitlines()
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    name, email = values.get("user.name", ""), values.get("user.email", "")
    return f"{name} <{email}>" if name and email else name or email


@cache
def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
