"""What threads have of their own."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from mstore.threads import Memory, PerThread


def test_each_thread_has_its_own_and_keeps_it():
    things: PerThread[list[int]] = PerThread(list)
    both = Barrier(2)

    def work(number: int) -> list[int]:
        things.get().append(number)
        both.wait()
        things.get().append(number)
        return things.get()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(work, [1, 2])) == [[1, 1], [2, 2]]
    assert things.get() == []


def test_memory_is_of_the_length_asked_for_and_used_again():
    memory = Memory(10)
    first = memory.take(4)
    assert len(first) == 4
    first[:] = b"abcd"
    assert memory.take(10)[:4] == b"abcd"
    assert len(memory.take(1000)) == 1000
    assert first == b"abcd"
