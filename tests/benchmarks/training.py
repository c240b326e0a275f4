"""Really training the models of the benchmark's families: the demo's sentence encoder and a small network.

The text is that of the Python standard library's own documentation, its docstrings, which every
machine that runs this has. One thread and fixed seeds: the same torch and Python make the same
bytes again.
"""

import ast
import math
import random
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]

HEADS, LAYERS, WIDTH = 12, 6, 384
TOKENS = 64
BATCH = 12
LEARNING_RATE = 2e-5

ADAPTER_RANK = 8
ADAPTER_RATE = 1e-3
ADAPTED = tuple(
    f"encoder.layer.{layer}.attention.self.{part}.weight"
    for layer in range(LAYERS)
    for part in ("query", "value")
)

SHORTEST_TEXT = 120
NOT_DOCUMENTATION = {"site-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3"}

CONTEXT, SYMBOLS = 16, 128
EMBEDDED, HIDDEN = 32, 1024
SCRATCH_BATCH = 128


def texts() -> list[str]:
    """The longer docstrings of the standard library, in the order of its files."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(library.rglob("*.py")):
        if NOT_DOCUMENTATION.isdisjoint(path.relative_to(library).parts):
            found += _docstrings(path.read_text(errors="replace"))
    return found


def _docstrings(source: str) -> list[str]:
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
    return [text for text in found if text and len(text) > SHORTEST_TEXT]


class Pairs:
    """Batches of the two halves of a text, which an encoder is to find alike."""

    def __init__(self, tokenizer: Path, texts: Sequence[str], seed: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(TOKENS)
        self._tokenizer.enable_padding(length=TOKENS)
        self._texts = texts
        self._random = random.Random(seed)

    def add_tokens(self, words: Sequence[str]) -> None:
        """Know these words as one token each, numbered after those there are."""
        self._tokenizer.add_tokens(list(words))

    def batch(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Ids and mask (int64, BATCH x TOKENS) of the first halves, and of the second ones."""
        chosen = self._random.sample(self._texts, BATCH)
        return (
            self._encode([text[: len(text) // 2] for text in chosen]),
            self._encode([text[len(text) // 2 :] for text in chosen]),
        )

    def _encode(self, parts: list[str]) -> tuple[Tensor, Tensor]:
        encoded = self._tokenizer.encode_batch(parts)
        ids = torch.tensor([part.ids for part in encoded])
        return ids, torch.tensor([part.attention_mask for part in encoded])


def encode(weights: Weights, ids: Tensor, mask: Tensor) -> Tensor:
    """The sentence vectors (batch x WIDTH, of length 1) of a BERT encoder with mean pooling."""
    words = functional.embedding(ids, weights["embeddings.word_embeddings.weight"])
    positions = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    kinds = weights["embeddings.token_type_embeddings.weight"][0]
    x = _normalized(weights, words + positions + kinds, "embeddings.LayerNorm")
    unseen = (1 - mask[:, None, None, :].to(x.dtype)) * -1e4
    for layer in range(LAYERS):
        x = _layer(weights, x, unseen, f"encoder.layer.{layer}.")
    seen = mask[:, :, None].to(x.dtype)
    return functional.normalize((x * seen).sum(1) / seen.sum(1), dim=-1)


def _layer(weights: Weights, x: Tensor, unseen: Tensor, name: str) -> Tensor:
    batch, tokens, _ = x.shape
    query, key, value = (
        _linear(weights, x, f"{name}attention.self.{part}")
        .view(batch, tokens, HEADS, WIDTH // HEADS)
        .transpose(1, 2)
        for part in ("query", "key", "value")
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + unseen
    mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(batch, tokens, WIDTH)
    attended = _linear(weights, mixed, f"{name}attention.output.dense")
    x = _normalized(weights, x + attended, f"{name}attention.output.LayerNorm")
    inner = functional.gelu(_linear(weights, x, f"{name}intermediate.dense"))
    outer = _linear(weights, inner, f"{name}output.dense")
    return _normalized(weights, x + outer, f"{name}output.LayerNorm")


def _linear(weights: Weights, x: Tensor, name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _normalized(weights: Weights, x: Tensor, name: str) -> Tensor:
    return functional.layer_norm(
        x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12
    )


def alike(weights: Weights, pairs: Pairs) -> Tensor:
    """The contrastive loss of one batch: each first half is to find its own second half."""
    first, second = (encode(weights, *half) for half in pairs.batch())
    return functional.cross_entropy((first @ second.T * 20).float(), torch.arange(BATCH))


def trainable(weights: Weights) -> Weights:
    """A copy whose floating-point tensors are trained; the others are the same."""
    return {
        name: tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }


def finetune(
    weights: Weights, pairs: Pairs, steps: int, every: int
) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Train `weights`, made by `trainable`, in place with AdamW; yields after `every` steps."""
    trained = [tensor for tensor in weights.values() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    for step in range(1, steps + 1):
        _step(optimizer, alike(weights, pairs))
        if step % every == 0:
            yield step, optimizer


def merged_adapter(weights: Weights, pairs: Pairs, steps: int, seed: int) -> Weights:
    """Train low-rank adapters of the queries and values alone; returns `weights` with them added."""
    generator = torch.Generator().manual_seed(seed)
    down = {
        name: (torch.randn(ADAPTER_RANK, WIDTH, generator=generator) * 0.02).requires_grad_()
        for name in ADAPTED
    }
    up = {name: torch.zeros(WIDTH, ADAPTER_RANK, requires_grad=True) for name in ADAPTED}

    def merged() -> Weights:
        return weights | {name: weights[name] + up[name] @ down[name] for name in ADAPTED}

    optimizer = torch.optim.AdamW([*down.values(), *up.values()], lr=ADAPTER_RATE)
    for _ in range(steps):
        _step(optimizer, alike(merged(), pairs))
    return merged()


def train_from_scratch(
    texts: Sequence[str], steps: Sequence[int], seed: int
) -> Iterator[tuple[int, Weights]]:
    """Train a network that guesses the next character, with SGD and momentum; yields at `steps`.

    Embedded characters, two hidden layers, 3 million parameters; step 0 is the random start.
    """
    generator = torch.Generator().manual_seed(seed)
    text = "\n".join(texts).encode("ascii", "replace")
    symbols = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp(max=SYMBOLS - 1)
    weights = _network(generator)
    optimizer = torch.optim.SGD(weights.values(), lr=0.05, momentum=0.9)
    for step in range(max(steps) + 1):
        if step in steps:
            yield step, weights
        starts = torch.randint(len(symbols) - CONTEXT, (SCRATCH_BATCH, 1), generator=generator)
        windows = symbols[starts + torch.arange(CONTEXT + 1)]
        guesses = _guess(weights, windows[:, :CONTEXT])
        _step(optimizer, functional.cross_entropy(guesses, windows[:, CONTEXT]))


def _network(generator: torch.Generator) -> Weights:
    widths = (CONTEXT * EMBEDDED, HIDDEN, 2 * HIDDEN, SYMBOLS)
    weights = {"embedding.weight": torch.randn(SYMBOLS, EMBEDDED, generator=generator)}
    for layer, (width, units) in enumerate(pairwise(widths)):
        matrix = torch.randn(units, width, generator=generator) / math.sqrt(width)
        weights |= {f"layers.{layer}.weight": matrix, f"layers.{layer}.bias": torch.zeros(units)}
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def _guess(weights: Weights, context: Tensor) -> Tensor:
    x = functional.embedding(context, weights["embedding.weight"]).flatten(1)
    for layer in range(3):
        x = functional.linear(x, weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"])
        x = functional.relu(x) if layer < 2 else x
    return x


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
