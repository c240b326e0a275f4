"""Describe one file in a process of its own: python describe_file.py FILE

Prints as JSON the format, how many tensors there are, the seconds it took, and the peak of memory
in bytes: of the whole process, and of the largest process that it started.
"""

import json
import resource
import sys
import time
from pathlib import Path

from mstore.formats import hdf5_process
from mstore.formats.detect import describe
from mstore.sources import FileSource, Folder, FolderOf


def main() -> None:
    """Describe the file once."""
    path = Path(sys.argv[1])
    source = FileSource(path)
    start = time.perf_counter()
    layout, told = describe(source, FolderOf(Folder(path.parent), path.name))
    took = time.perf_counter() - start
    source.close()
    hdf5_process.end_kept()  # what a process took is only known when it has ended
    tensors = sum(segment.tensor is not None and not segment.hidden for segment in layout.segments)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    report = {
        "format": layout.format,
        "tensors": tensors + len(layout.views),
        "told": told,
        "seconds": took,
        "memory": int(status["VmHWM"].split()[0]) * 1024,
        "children": children * 1024,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
