"""A process that runs alone agrees with itself. Several: test_distributed_training.py."""

from motionaura_jax.parallel import distributed


def test_alone_nothing_waits():
    with distributed.joined():
        assert distributed.process_count() == 1 and distributed.is_primary()
        assert distributed.gather("x", 3) == [3] and distributed.broadcast("y", "z") == "z"
        distributed.barrier("b")
    assert distributed.leave(3) == 3
