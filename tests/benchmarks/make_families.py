"""Make the families of models: python tests/benchmarks/make_families.py [NAME]…

Really trains them, which takes about a quarter of an hour of one core; what is there already stays.
Needs the optional dependencies `mstore[bench]`.
"""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import families
import torch
import training
from families import CACHE, CHECKPOINT, FAMILIES, LONG_FAMILIES, MODEL
from measure import DEFAULT_MODEL
from safetensors.torch import load_file, save_file
from training import Pairs, Weights


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where the families go, and what they are made of: the encoder's folder and the text."""

    cache: Path
    model: Path
    texts: Sequence[str]

    @property
    def base(self) -> Weights:
        """The published weights, float32."""
        return load_file(self.model / MODEL)

    def finetuned(self, steps: int) -> Weights:
        """The float32 fine-tune after `steps` steps, which is made by then."""
        number = families.FINETUNED.index(steps)
        return load_file(self.cache / "f32" / str(number) / MODEL)

    def pairs(self, seed: int) -> Pairs:
        """New batches to train on."""
        return Pairs(self.model / "tokenizer.json", self.texts, seed)

    @contextmanager
    def family(self, name: str) -> Iterator["Versions"]:
        """A new family; it appears only when all goes well."""
        partial = self.cache / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield Versions(partial)
        partial.rename(self.cache / name)
        print(f"{name}: made", flush=True)


class Versions:
    """The versions of a family that is being made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def add(self, weights: Weights, name: str = MODEL) -> None:
        """The next version: one safetensors file."""
        save_file(plain(weights), self._next() / name, {"format": "pt"})

    def add_checkpoint(self, state: dict[str, object]) -> None:
        """The next version: one file of `torch.save`."""
        torch.save(state, self._next() / CHECKPOINT)

    def add_beside(self, weights: Weights, name: str) -> None:
        """The next version: the files of the one before (hard links) and one more."""
        before = self._directory / str(self._count - 1)
        directory = self._next()
        for file in before.iterdir():
            os.link(file, directory / file.name)
        save_file(plain(weights), directory / name, {"format": "pt"})

    def _next(self) -> Path:
        directory = self._directory / str(self._count)
        directory.mkdir()
        self._count += 1
        return directory


def plain(weights: Weights) -> Weights:
    """The tensors without their gradients, as a file holds them."""
    return {name: tensor.detach().contiguous() for name, tensor in weights.items()}


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    """Floating-point tensors in another type, the others as they are."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }


def finetune_f32(shop: Workshop) -> None:
    """The series of float32 checkpoints, and some of the same with AdamW's moments."""
    weights = training.trainable(shop.base)
    with shop.family("f32") as plain_ones, shop.family("optimizer") as full_ones:
        plain_ones.add(weights)
        steps = max(families.FINETUNED)
        for step, optimizer in training.finetune(weights, shop.pairs(1), steps, every=50):
            plain_ones.add(weights)
            if step in families.WITH_OPTIMIZER:
                state = {"model": plain(weights), "optimizer": optimizer.state_dict()}
                full_ones.add_checkpoint(state | {"step": step})
            print(f"float32 fine-tune: step {step}", flush=True)


def finetune_bf16(shop: Workshop) -> None:
    """Weights, gradients and AdamW's moments all in bfloat16."""
    weights = training.trainable(cast(shop.base, torch.bfloat16))
    with shop.family("bf16") as versions:
        versions.add(weights)
        steps = max(families.FINETUNED_BF16)
        for step, _ in training.finetune(weights, shop.pairs(1), steps, every=50):
            versions.add(weights)
            print(f"bfloat16 fine-tune: step {step}", flush=True)


def cast_bf16(shop: Workshop) -> None:
    """The float32 series, each rounded to bfloat16."""
    with shop.family("bf16-cast") as versions:
        for steps in families.FINETUNED:
            versions.add(cast(shop.finetuned(steps), torch.bfloat16))


def cast_f16(shop: Workshop) -> None:
    """The first and the last of the float32 series, rounded to float16."""
    with shop.family("f16-cast") as versions:
        for steps in families.CAST_F16:
            versions.add(cast(shop.finetuned(steps), torch.float16))


def adapter(shop: Workshop) -> None:
    """The base, and the base with a trained low-rank adapter added to it."""
    with shop.family("adapter") as versions:
        versions.add(shop.base)
        versions.add(
            training.merged_adapter(shop.base, shop.pairs(4), families.ADAPTER_STEPS, seed=4)
        )


def seeds(shop: Workshop) -> None:
    """The base, and two fine-tunes of it that saw the text in different order."""
    with shop.family("seeds") as versions:
        versions.add(shop.base)
        for seed in families.SEEDS:
            weights = training.trainable(shop.base)
            steps = families.SEED_STEPS
            for _ in training.finetune(weights, shop.pairs(seed), steps, every=steps):
                versions.add(weights)


def scratch(shop: Workshop) -> None:
    """A small network's random start and its early steps."""
    with shop.family("scratch") as versions:
        for _, weights in training.train_from_scratch(shop.texts, families.SCRATCH, seed=5):
            versions.add(weights)


def long_series(shop: Workshop) -> None:
    """The small network's later steps in float32, and the same rounded to bfloat16."""
    with shop.family("long-f32") as full, shop.family("long-bf16") as half:
        for _, weights in training.train_from_scratch(shop.texts, families.LONG, seed=5):
            full.add(weights)
            half.add(cast(weights, torch.bfloat16))


def vocabulary(shop: Workshop) -> None:
    """The base, the base with new tokens that start near the mean, and that fine-tuned."""
    name = "embeddings.word_embeddings.weight"
    base = shop.base
    noise = torch.randn(
        families.NEW_TOKENS, training.WIDTH, generator=torch.Generator().manual_seed(6)
    )
    rows = base[name].mean(0) + 0.02 * noise
    weights = training.trainable(base | {name: torch.cat([base[name], rows])})
    words = sorted({word for text in shop.texts for word in text.split() if "_" in word})
    pairs = shop.pairs(6)
    pairs.add_tokens(words[: families.NEW_TOKENS])
    steps = families.VOCABULARY_STEPS
    with shop.family("vocabulary") as versions:
        versions.add(base)
        versions.add(weights)
        for _ in training.finetune(weights, pairs, steps, every=steps):
            versions.add(weights)


def int8(shop: Workshop) -> None:
    """The matrices in int8 with a float32 scale per row, as `round(w / scale)`."""
    with shop.family("int8") as versions:
        for steps in families.QUANTISED:
            versions.add(_quantised(shop.finetuned(steps)))


def _quantised(weights: Weights) -> Weights:
    found = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.dim() != 2:
            found[name] = tensor
            continue
        scale = tensor.abs().amax(1, keepdim=True) / 127
        found[name] = torch.round(tensor / scale.clamp(min=1e-12)).to(torch.int8)
        found[f"{name}.scale"] = scale
    return found


def sparse(shop: Workshop) -> None:
    """The base, and the base with the largest changes of the fine-tune alone."""
    base, tuned = shop.base, shop.finetuned(300)
    with shop.family("sparse") as versions:
        versions.add(base)
        versions.add({name: _largest_changes(base[name], tuned[name]) for name in base})


def _largest_changes(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """`before`, with the elements of `after` where they differ most."""
    if not before.is_floating_point():
        return before
    changes = (after - before).abs().flatten()
    kept = torch.topk(changes, round(changes.numel() * families.SPARSE_SHARE)).indices
    return before.flatten().index_copy(0, kept, after.flatten()[kept]).view_as(before)


def mixed(shop: Workshop) -> None:
    """A float32 model, then beside it one after the other its copies in other types."""
    base = shop.base
    half = cast(base, torch.bfloat16)
    with shop.family("mixed") as versions:
        versions.add(base)
        versions.add_beside(half, "model.bf16.safetensors")
        versions.add_beside(cast(base, torch.float16), "model.f16.safetensors")
        versions.add_beside(cast(half, torch.float32), "model.upcast.safetensors")


Maker = Callable[[Workshop], None]

MAKERS: dict[tuple[str, ...], Maker] = {
    ("f32", "optimizer"): finetune_f32,
    ("bf16-cast",): cast_bf16,
    ("f16-cast",): cast_f16,
    ("int8",): int8,
    ("sparse",): sparse,
    ("mixed",): mixed,
    ("bf16",): finetune_bf16,
    ("adapter",): adapter,
    ("vocabulary",): vocabulary,
    ("scratch",): scratch,
    ("long-f32", "long-bf16"): long_series,
    ("seeds",): seeds,
}
"""Which families each makes, in an order in which the first is there for those made of it."""

MADE_OF_F32 = {"bf16-cast", "f16-cast", "int8", "sparse"}


def make(names: Sequence[str], model: Path, cache: Path) -> None:
    """Make the families of `names` that are not there yet."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shop = Workshop(cache, model, training.texts())
    print(f"{len(shop.texts)} texts to train on", flush=True)
    wanted = {*names, "f32"} if MADE_OF_F32 & set(names) else set(names)
    for made, maker in MAKERS.items():
        if wanted.intersection(made) and not all((cache / name).is_dir() for name in made):
            for name in made:
                shutil.rmtree(cache / name, ignore_errors=True)
            maker(shop)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the families of models.")
    known = [family.name for family in (*FAMILIES, *LONG_FAMILIES)]
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of the f32 model")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(known)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"there is no family {sorted(unknown)[0]!r}")
    make(arguments.names or known, arguments.model.resolve(), CACHE)


if __name__ == "__main__":
    main()
