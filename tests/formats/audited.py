"""Watching what a parser makes the interpreter do, in a process of its own."""

import subprocess
import sys


def events(prepare: str, watched: str) -> tuple[str, str]:
    """What is written to the error output, and the events and new modules of a piece of code.

    `prepare` is run before anything is watched. `ignored` may be set there: events that only look.
    """
    script = f"""
import sys
events, watching, ignored = [], False, ()
def hook(event, arguments):
    if watching and event not in ignored:
        events.append((event, arguments))
{prepare}
sys.addaudithook(hook)
before = set(sys.modules)
watching = True
{watched}
watching = False
print(events, set(sys.modules) - before)
"""
    done = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stderr, done.stdout


NOTHING = "", "[] set()\n"
"""What `events` gives of code that does nothing but compute."""
