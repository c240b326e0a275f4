from mstore.storage.memory import MemoryStorage


def test_bytes_are_neither_copied_in_nor_out():
    storage = MemoryStorage("here")
    data = b"x" * 1000
    storage.put("data/a", [data])
    assert storage.get("data/a") is data
    assert storage.view("data/a").obj is data
    assert storage.location == "memory://here"


def test_an_object_created_while_the_parts_are_joined_wins():
    storage = MemoryStorage()

    def parts():
        storage.put("data/a", [b"other"])
        yield b"mine"

    assert storage.put("data/a", parts()) is False
    assert storage.get("data/a") == b"other"
