"""Files of `joblib.dump`, plain and compressed, and fitted estimators of scikit-learn."""

import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from cases import Arrays, Case, flat, numbers, with_fields

COMPRESSED = {
    "z": ("zlib", 3),
    "gz": ("gzip", 3),
    "bz2": ("bz2", 3),
    "xz": ("xz", 3),
    "lzma": ("lzma", 3),
}


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    yield from structures(folder)
    yield from estimators(folder)


def load(path: Path) -> Arrays:
    """What joblib loads, by path in the structure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return with_fields(flat(joblib.load(path)))


def unpickle(path: Path) -> Arrays:
    """What pickle loads, by path in the structure."""
    return with_fields(flat(pickle.loads(path.read_bytes())))


def structures(folder: Path) -> Iterator[Case]:
    """Arrays in plain containers."""
    arrays = {
        "w": numbers(40, 5),
        "turned": np.asfortranarray(numbers(3, 4, dtype=np.float64)),
        "part": numbers(6, 6)[::2, 1:4],
        "scalar": np.array(2.5),
        "none": np.zeros((0, 2), np.int8),
        "big": numbers(3, 3, dtype=">f4"),
        "layers": [(numbers(2, seed=1), numbers(3, seed=2)), {"x": numbers(5, seed=3)}],
    }
    types = {
        kind: numbers(2, 3, dtype=kind) for kind in ("?", "u1", "i2", "f2", "f8", "c16", ">i4")
    }
    for name, value in {"arrays": arrays, "types": types, "alone": numbers(30, 3)}.items():
        path = folder / f"{name}.joblib"
        joblib.dump(value, path)
        yield Case(path.name, "joblib", partial(load, path))
    for protocol in (2, 3, 4, 5):
        path = folder / f"protocol_{protocol}.joblib"
        joblib.dump(arrays, path, protocol=protocol)
        yield Case(path.name, "joblib", partial(load, path))
    for suffix, how in COMPRESSED.items():
        path = folder / f"compressed.{suffix}"
        joblib.dump(arrays, path, compress=how)
        yield Case(path.name, "opaque", dict, told="it is a compressed joblib file")


def estimators(folder: Path) -> Iterator[Case]:
    """Each by joblib and by pickle."""
    for name, estimator in fitted().items():
        path = folder / f"{name}.joblib"
        joblib.dump(estimator, path)
        yield Case(path.name, "joblib", partial(load, path))
        path = folder / f"{name}.pkl"
        path.write_bytes(pickle.dumps(estimator))
        yield Case(path.name, "pickle", partial(unpickle, path))


def fitted() -> dict[str, Any]:
    """Estimators of many kinds, fitted to a few points."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x = np.random.default_rng(0).normal(size=(40, 4))
    y = (x[:, 0] > 0).astype(int)
    made: dict[str, Callable[[], Any]] = {
        "linear": LinearRegression,
        "logistic": LogisticRegression,
        "pca": lambda: PCA(2),
        "scaler": StandardScaler,
        "kmeans": lambda: KMeans(2, n_init=1, random_state=0),
        "forest": lambda: RandomForestClassifier(3, max_depth=3, random_state=0),
        "bayes": GaussianNB,
        "neighbours": lambda: KNeighborsClassifier(3, algorithm="kd_tree"),
        "network": lambda: MLPClassifier((5,), max_iter=5, random_state=0),
        "vectors": SVC,
        "pipeline": lambda: make_pipeline(StandardScaler(), PCA(2), LogisticRegression()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: make().fit(x, y) for name, make in made.items()}
