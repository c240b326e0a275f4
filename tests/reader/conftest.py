"""The independent reader, loaded as a program of its own would be: not as a part of mstore."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
