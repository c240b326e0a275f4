"""What a file would do if its own library loaded it. Nothing is loaded here to find that out.

It is a judgement by lists, so there are three answers: what is on a list of harmless things is
allowed, what is on a list of harmful ones is dangerous, and what is on neither is unknown.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from mstore.errors import FormatError, LimitExceededError, MstoreError, UnsafeInputError
from mstore.formats.base import Danger, Finding, Format, quote
from mstore.formats.detect import COMPANIONS, examine, find_format
from mstore.layout import Beside, ByteReader
from mstore.strictjson import parse_json

MAX_FINDINGS = 1000
"""Most findings that are told of one file; how many there are besides is counted."""

Verdict = Literal["dangerous", "malformed", "unknown", "ok", "opaque"]
"""The worst there is to say of a file; `opaque` of one that no parser knows, and nobody judges."""

DANGERS: Final[Sequence[Danger]] = ("dangerous", "unknown", "allowed")
"""What a finding may be, worst first."""

_FIRST_OPCODES = frozenset(
    b"()BCFGIJKLMNPSTUVX]ci}\x80\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96\x97"
)
"""What a pickle can begin with: opcodes that need no value before them, no mark and no memo; and
INST, whose name an unpickler in Python looks up before it misses the mark."""

_PICKLES = ("pickle", "joblib")
_MAX_CONFIG = 4 << 20
_MAX_READ = 32 << 20  # bytes of a file that is no pickle, as far as anybody knows


@dataclass(frozen=True, slots=True)
class Hazards:
    """What loading a file would do, besides giving tensors.

    `format` is empty when no parser knows the file. `findings` are each told once, the worst first;
    there are `left_out` more. `problem` is what is wrong with the file, worded to follow "looks
    like NAME but …". `judged` is False when because of that the findings are not all there are.
    """

    format: str
    findings: tuple[Finding, ...] = ()
    left_out: int = 0
    problem: str | None = None
    judged: bool = True

    def of(self, danger: Danger) -> list[Finding]:
        """The findings of one kind."""
        return [finding for finding in self.findings if finding.danger == danger]

    @property
    def dangerous(self) -> bool:
        """Whether there is a dangerous finding; as the worst come first, it is the first."""
        return bool(self.findings) and self.findings[0].danger == "dangerous"

    @property
    def verdict(self) -> Verdict:
        """The worst there is to say."""
        if self.dangerous:
            return "dangerous"
        if self.problem is not None:
            return "malformed"
        if self.of("unknown"):
            return "unknown"
        return "ok" if self.format else "opaque"

    @property
    def unsafe(self) -> bool:
        """Whether loading the file is dangerous, or may be for all that can be told."""
        return self.dangerous or not self.judged


def find_hazards(reader: ByteReader, beside: Beside | None = None) -> Hazards:
    """What loading the file would do, and whether its structure is sound.

    `beside` is the folder that the file lies in, if it lies in one. Raises only what reading itself
    raises, never anything because of the content.
    """
    found = find_format(reader)
    # Described first: to judge what has been takes less.
    wrong = _what_is_wrong(reader, found, beside) if found else None
    hazards = judge(reader, found, beside)
    if hazards.dangerous or hazards.problem is not None:
        return hazards
    if found is None:
        configured = list(_configured(reader, beside.name)) if beside else []
        return _hazards("config" if configured else _described(reader, beside), configured)
    if isinstance(wrong, UnsafeInputError):
        return _hazards(found.name, [*hazards.findings, Finding("dangerous", wrong.message)])
    return replace(hazards, problem=wrong.message) if wrong else hazards


def _what_is_wrong(reader: ByteReader, found: Format, beside: Beside | None) -> MstoreError | None:
    """Why the file cannot be described; None if it can be."""
    try:
        examine(found, reader, beside)
    except (FormatError, LimitExceededError, UnsafeInputError) as error:
        return error
    return None


def judge(reader: ByteReader, found: Format | None, beside: Beside | None = None) -> Hazards:
    """What loading a file of format `found` would do; says nothing more of its structure.

    Next to nothing is read of a file that cannot do anything. Raises as `find_hazards` does.
    """
    name = found.name if found else ""
    problem = None
    findings: list[Finding] = []
    try:
        if found is not None and type(found).findings is not Format.findings:
            findings = found.findings(reader)
            if beside is not None:
                findings = [*findings, *found.findings_beside(reader, beside)]
    except UnsafeInputError as error:
        findings = [Finding("dangerous", error.message)]
    except (FormatError, LimitExceededError) as error:
        problem = error.message
    # What is a pickle has been judged as one.
    if name not in _PICKLES and not any(finding.danger == "dangerous" for finding in findings):
        findings = [*findings, *_harm_as_pickle(reader)]
    hazards = _hazards(name, findings)
    return hazards if problem is None else replace(hazards, problem=problem, judged=False)


def _harm_as_pickle(reader: ByteReader) -> list[Finding]:
    """What harm a file does if it is loaded as a pickle, whatever else it is.

    A file can be a good one of another format, or of none, and yet begin with a pickle; and
    libraries go by the name of a file, or by what they are told. Nearly all files that are no
    pickle break off after a few opcodes, most at the first.
    """
    if not _FIRST_OPCODES.issuperset(reader.read(0, 1)):
        return []
    from mstore.formats.pickle_file import find_deeds
    from mstore.formats.pickle_stack import new_account

    try:
        deeds = find_deeds(_Sparing(reader), new_account(reader.size))
    except (FormatError, LimitExceededError, UnsafeInputError):
        return []
    return [
        Finding(deed.danger, f"{deed.verb}s {deed.what}, loaded as a pickle", f"byte {deed.at}")
        for deed in deeds
        if deed.danger == "dangerous" and deed.verb == "call"
    ]


class _Sparing:
    """The bytes of a file, of which not too many may be read."""

    def __init__(self, reader: ByteReader) -> None:
        self.size = reader.size
        self._reader = reader
        self._left = _MAX_READ

    def read(self, offset: int, length: int) -> bytes:
        """As the file; raises LimitExceededError when it is asked for more in all."""
        self._left -= length
        if self._left < 0:
            raise LimitExceededError("it is not looked into any further")
        return self._reader.read(offset, length)


def _hazards(name: str, findings: Iterable[Finding]) -> Hazards:
    ordered = sorted(dict.fromkeys(findings), key=lambda finding: DANGERS.index(finding.danger))
    return Hazards(name, tuple(ordered[:MAX_FINDINGS]), max(0, len(ordered) - MAX_FINDINGS))


def _described(reader: ByteReader, beside: Beside | None) -> str:
    """The format of a file that another file beside it describes; empty if there is none."""
    if beside is None:
        return ""
    named = (one.name for one in COMPANIONS if one.examine(reader, beside) is not None)
    return next(named, "")


def _configured(reader: ByteReader, name: str) -> Iterator[Finding]:
    """The code that a configuration of Hugging Face names, to be loaded with the model.

    Source: `auto_map` and `custom_pipelines` in transformers/dynamic_module_utils.py and
    configuration_utils.py; a value is `module.Class`, or `owner/repository--module.Class`.
    """
    if not name.endswith(".json") or reader.size > _MAX_CONFIG:
        return
    try:
        config = parse_json(reader.read(0, reader.size).decode("utf-8"))
    except (MstoreError, UnicodeDecodeError):
        return
    for where, named in _classes(config) if isinstance(config, dict) else ():
        place, _, inside = named.rpartition("--")
        module = inside.rpartition(".")[0] or inside
        code = quote(module.replace(".", "/") + ".py") + (f" of {quote(place)}" if place else "")
        yield Finding("unknown", f"has the code in {code} run, where that is trusted", where)


def _classes(config: dict[str, object]) -> Iterator[tuple[str, str]]:
    """The classes that a configuration names, each with its place there."""
    auto_map, pipelines = config.get("auto_map"), config.get("custom_pipelines")
    for key, value in auto_map.items() if isinstance(auto_map, dict) else ():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                yield f"auto_map.{key}", one
    for key, value in pipelines.items() if isinstance(pipelines, dict) else ():
        if isinstance(value, dict) and isinstance(one := value.get("impl"), str):
            yield f"custom_pipelines.{key}", one
