"""The families of models that sizes are compared on, and where they lie once they are made.

A family is a directory with one directory per version, `0/`, `1/`, …, in the order in which they
are committed. `make_families.py` trains them; nothing here needs torch.
"""

from dataclasses import dataclass
from pathlib import Path

from measure import ROOT

CACHE = ROOT / ".venv/bench/families"

MODEL = "model.safetensors"
CHECKPOINT = "checkpoint.pt"

FINETUNED = (0, 50, 100, 150, 200, 250, 300)
FINETUNED_BF16 = FINETUNED[:5]
CAST_F16 = (0, 300)
WITH_OPTIMIZER = (100, 200, 300)
QUANTISED = (0, 50, 300)
SEEDS = (2, 3)
SEED_STEPS = 100
ADAPTER_STEPS = 50
NEW_TOKENS = 100
VOCABULARY_STEPS = 50
SCRATCH = (0, 10, 20, 50, 100, 200, 400)
LONG = tuple(range(400, 1000, 20))
SPARSE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Family:
    """One family: its versions are committed in order, each made from the one before it.

    If `unrelated`, every version is instead committed as a model of its own, so that no history
    says what it was made from; all after the first were made from version 0.
    """

    name: str
    title: str
    versions: tuple[str, ...]
    unrelated: bool = False

    def directory(self, version: int, cache: Path = CACHE) -> Path:
        """Where the files of version number `version` lie."""
        return cache / self.name / str(version)

    def parent(self, version: int) -> int | None:
        """The number of the version that `version` was made from."""
        if version == 0:
            return None
        return 0 if self.unrelated else version - 1

    def made(self, cache: Path = CACHE) -> bool:
        """Whether its files are there; a family appears only when it is complete."""
        return (cache / self.name).is_dir()

    def new_files(self, version: int, cache: Path = CACHE) -> list[Path]:
        """The files of a version that its parent does not have.

        One that stays the same is a hard link to the parent's.
        """
        files = sorted(self.directory(version, cache).iterdir())
        parent = self.parent(version)
        if parent is None:
            return files
        before = self.directory(parent, cache)
        return [file for file in files if not _same(before / file.name, file)]

    def raw_size(self, version: int, cache: Path = CACHE) -> int:
        """Bytes of the version's new files."""
        return sum(file.stat().st_size for file in self.new_files(version, cache))


def _same(before: Path, file: Path) -> bool:
    return before.exists() and before.samefile(file)


def _steps(numbers: tuple[int, ...]) -> tuple[str, ...]:
    return tuple("base" if number == 0 else f"{number} steps" for number in numbers)


FAMILIES = (
    Family("f32", "float32 fine-tune, AdamW", _steps(FINETUNED)),
    Family("bf16-cast", "float32 fine-tune cast to bfloat16", _steps(FINETUNED)),
    Family("f16-cast", "float32 fine-tune cast to float16", _steps(CAST_F16)),
    Family("bf16", "bfloat16 fine-tune, AdamW", _steps(FINETUNED_BF16)),
    Family("optimizer", "checkpoints with optimizer state (.pt)", _steps(WITH_OPTIMIZER)),
    Family("adapter", "low-rank adapter merged", ("base", "merged adapter")),
    Family("seeds", "fine-tunes of two seeds", ("base", "seed A", "seed B"), unrelated=True),
    Family("scratch", "small network from scratch, SGD", _steps(SCRATCH)),
    Family("vocabulary", "extended vocabulary", ("base", "100 tokens more", "50 steps")),
    Family("int8", "int8 by rows, with scales", _steps(QUANTISED)),
    Family("sparse", "1 % of the elements changed", ("base", "sparse update")),
    Family(
        "mixed",
        "one model in several formats",
        ("float32", "its bfloat16 copy", "its float16 copy", "the bfloat16 copy as float32"),
    ),
)
"""Those that peers are compared on."""

LONG_FAMILIES = (
    Family("long-f32", "the small network trained on", _steps(LONG)),
    Family("long-bf16", "the small network trained on, cast to bfloat16", _steps(LONG)),
)
"""Long histories, for what comes of a history's length alone."""
