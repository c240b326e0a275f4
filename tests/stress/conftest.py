"""Makes the modules beside the tests importable (`harness`, `crashes`, `worker`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
