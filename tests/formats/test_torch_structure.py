"""What the tensors of a file of torch.save are called, and how its values are followed."""

from torch_making import SIX, Key, Made, Named, archive, said, shapes, tensor

from mstore.formats import pickle_paths
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe


def test_names():
    one = [tensor(str(index), 1, (), ()) for index in range(11)]
    value = {
        "a": {"b": one[0]},
        "a.b": one[1],
        "a.b#2": one[2],
        b"": one[3],
        b"1": one[4],
        b"2": one[5],
        (1, (2,)): one[6],
        "\ud800\x1b": one[7],
        None: Made(Named("my.Module"), state=({"w": one[8]}, {"slot": one[9]})),
        Named("torch.float32"): one[10],
    }
    assert list(shapes(value, [SIX[:4]] * 11)) == [
        "a.b", "a.b#2", "a.b#2#2", "3", "4", "5", "1,?", "\\ud800\x1b", "None.w", "None.slot",
        "torch.float32",
    ]  # fmt: skip


def test_what_is_in_several_places_is_found_in_all():
    one, pair = tensor(), [tensor("1", 1, (), ())]
    value = {"a": one, "b": [one, pair, pair], "c": {"d": pair}}
    assert shapes(value, (SIX, SIX[:4])) == {
        "a": ("f32", (2, 3), "C"),
        "b.0": ("f32", (2, 3), "view"),
        "b.1.0": ("f32", (), "C"),
        "b.2.0": ("f32", (), "view"),
        "c.d.0": ("f32", (), "view"),
    }


def test_a_module_is_called_as_its_users_call_it():
    def module(parameters, buffers, modules, **attributes):
        state = {"training": True, "_parameters": parameters, "_buffers": buffers}
        return Made(Named("my.Module"), state={**state, "_modules": modules, **attributes})

    ones = [tensor(str(index), 1, (), ()) for index in range(4)]
    inner = module({"weight": ones[0], "bias": None}, {"mean": ones[1]}, {})
    value = module({"scale": ones[2]}, {}, {"0": inner}, mask=ones[3])
    found = shapes({"model": value, "_modules": {"x": ones[0]}}, [SIX[:4]] * 4)
    assert set(found) == {
        *("model.scale", "model.0.weight", "model.0.mean", "model.mask", "_modules.x"),
    }


def test_tensors_as_keys():
    """An optimizer that is pickled as a whole has its state by parameter."""
    weight, mean = tensor(), tensor("1", 1, (), ())
    state = {Key(weight): {"mean": mean}}
    assert set(shapes({"state": state}, (SIX, SIX[:4]))) == {"state.0", "state.0.mean"}


def test_cycles_and_bombs():
    loop = b"}q\0X\1\0\0\0ah\0s."
    assert describe(BytesReader(archive(loop, ())))[0].format == "torch"
    doubling = b")" + b"2\x86" * 200 + b"."
    assert "written out" in said(archive(doubling, ()))
    deep = b")" + b"\x85" * 11_000 + b"."
    assert "nested deeper" in said(archive(deep, ()))
    long_key = {"k" * 4000: {"k" * 4000: tensor()}}
    assert "a name of over 4096" in said(archive(long_key))


def test_shared_arguments_are_followed_once():
    """Work grows with what is written, not with the ways to reach it: else these take hours."""
    many = b"(" + b"N" * 30_000 + b"tq\0"
    calls = b"0(" + b"cm\nC\nh\0R" * 30_000 + b"l."
    assert describe(BytesReader(archive(many + calls, ())))[0].format == "torch"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\nq\x01"
    view = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0NK\6tQq\2"
    calls = b"000(" + b"h\1(h\2K\0h\0h\0tR" * 3_000 + b"l."
    assert "30000 dimensions" in said(archive(many + rebuild + view + calls))
    chain = b"ctorch._tensor\n_rebuild_from_type_v2\nq\0cm\nC\nq\1"
    chain += b")" + b"q\2(h\0h\1h\2Nt" * 250 + b"q\2"
    calls = b"(" + b"h\0h\2R" * 10_000 + b"l."
    assert describe(BytesReader(archive(chain + calls, ())))[0].format == "torch"


def test_what_is_in_very_many_places_is_beyond_the_limits(monkeypatch):
    """Each list holds the one before it twice, so that a tensor is in 2**30 places."""
    value = [tensor()]
    for _ in range(5):
        value = [value, value]
    assert len(shapes(value)) == 2**5
    for _ in range(25):
        value = [value, value]
    monkeypatch.setattr(pickle_paths, "MAX_REPEATS", 2000)
    assert "more than 2000 places" in said(archive(value))


def test_what_holds_no_tensors_is_not_followed_again(monkeypatch):
    """Nor does it count as what is followed again: there are many empty tuples in a pickle."""
    monkeypatch.setattr(pickle_paths, "MAX_REPEATS", 30)
    plain, pair = [1, [2, (3, {})]], [tensor()]
    value = {"first": plain, "all": [plain] * 100, "w": pair, "again": pair}
    assert set(shapes(value)) == {"w.0", "again.0"}


def test_a_long_list_in_many_places_is_beyond_the_limits(monkeypatch):
    """Each of its members counts, or this takes minutes."""
    value = [[tensor(), *[None] * 900]]
    monkeypatch.setattr(pickle_paths, "MAX_REPEATS", 2000)
    assert len(shapes(value * 3)) == 3
    assert "more than 2000 places" in said(archive(value * 900))


def test_a_cycle_is_not_followed_into_itself():
    loop = [tensor()]
    loop.append({"again": loop, "w": loop[0]})
    assert set(shapes({"a": loop})) == {"a.0", "a.1.w"}
