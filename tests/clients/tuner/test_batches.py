from __future__ import annotations

from foreword_tuner import batches
from foreword_tuner.encoding import Example

EXAMPLES = [Example(i, [7] * (1 + i % 13), [8, 9][: 1 + i % 2]) for i in range(200)]


def test_an_epoch_has_every_example_once_in_batches_that_fit() -> None:
    epoch = batches.epoch(EXAMPLES, 64, seed=0, number=0)

    assert sorted(e.number for batch in epoch for e in batch) == list(range(200))
    for batch in epoch:
        assert len(batch) * max(e.num_tokens for e in batch) <= 64


def test_little_of_a_batch_is_padding() -> None:
    epoch = batches.epoch(EXAMPLES, 64, seed=0, number=0)

    computed = sum(len(batch) * max(e.num_tokens for e in batch) for batch in epoch)

    assert computed < 1.1 * sum(e.num_tokens for e in EXAMPLES)


def test_epochs_differ_and_can_be_had_again() -> None:
    first, second = (batches.epoch(EXAMPLES, 64, seed=0, number=n) for n in (0, 1))

    assert first != second
    assert first == batches.epoch(EXAMPLES, 64, seed=0, number=0)
    assert first != batches.epoch(EXAMPLES, 64, seed=1, number=0)


def test_an_example_longer_than_a_batch_is_a_batch() -> None:
    long = Example(0, [7] * 100, [8])

    assert [[e.number for e in b] for b in batches.in_order([long, EXAMPLES[1]], 64)] == [[1], [0]]


def test_targets_are_the_completions_tokens_and_their_rows_come_just_before() -> None:
    batch = batches.pack([Example(1, [5, 6], [7, 2]), Example(2, [5], [2])], pad_id=0)

    assert batch.token_ids.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch.targets.tolist() == [7, 2, 2]
    assert batch.token_ids.flatten()[batch.rows].tolist() == [6, 7, 5]
    assert batch.owners.tolist() == [0, 0, 1]
