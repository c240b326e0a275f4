from mstore.storage.memory import MemoryStorage


def test_bytes_are_neither_copied_in_nor_out():
    storage = MemoryStorage("here")
    data = b"x" * 1000
    storage.put("data/a", [data])
    assert storage.get("data/a") is data
    assert storage.view("data/a").obj is data
    assert storage.location == "memory://here"
