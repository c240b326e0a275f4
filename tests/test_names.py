"""Names of tensors as they are compared across file formats."""

import pytest

from mstore.names import canonical_name


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("", ""),
        ("w", "w"),
        ("encoder.0.weight", "encoder.0.weight"),
        ("state_dict.encoder.0.weight", "encoder.0.weight"),
        ("model.module._orig_mod.encoder.0.weight", "encoder.0.weight"),
        ("params/Dense_0/kernel", "Dense_0.kernel"),
        ("layers/dense/vars/0", "layers.dense.vars.0"),
        ("/layers/dense/vars/0", "layers.dense.vars.0"),
        ("dense/kernel:0", "dense.kernel"),
        ("optimizer.state.3.exp_avg", "optimizer.state.3.exp_avg"),
        ("model", "model"),
        ("a.model.b", "a.model.b"),
    ],
)
def test_canonical(name, canonical):
    assert canonical_name(name) == canonical
    assert canonical_name(canonical) == canonical
