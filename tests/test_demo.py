"""The demo runs, on a model small enough for a test."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from mstore.arrayfile import pack_arrays

DEMO = Path(__file__).parent / "demo.py"


def make_model(directory: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        f"layers.{layer}.{part}.weight": random.normal(0, 0.05, (64, 64)).astype(np.float32)
        for layer in range(4)
        for part in ("query", "value", "dense")
    }
    packed = pack_arrays({**arrays, "position_ids": np.arange(64)}, {"format": "pt"})
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(packed.header + b"".join(packed.buffers))
    (directory / "config.json").write_text(json.dumps({"hidden_dropout_prob": 0.1}))


def run_demo(model: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), "--model", str(model)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_demo_passes(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    done = run_demo(tmp_path / "model")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERENT" not in done.stdout
    assert done.stdout.count("identical") == 2 + 5 + 4
    assert "All checks passed" in done.stdout
    assert "\033[" not in done.stdout, "colours where there is no terminal"


def test_the_demo_fails_where_a_command_does(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    (tmp_path / "model/.mstore").mkdir()
    (tmp_path / "model/.mstore/roots").write_text("not a folder")
    done = run_demo(tmp_path / "model")
    assert done.returncode == 1
    assert "mstore init ended with" in done.stderr
