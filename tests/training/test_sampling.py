import numpy as np

from hybrid_kernels.training.sampling import POOL, LengthBucketedSampler

LENGTHS = np.random.default_rng(0).integers(5, 100, 16 * POOL * 5 + 16 * 3 + 7)


def order_of(epoch=0, seed=0, lengths=LENGTHS, batch_size=16):
    sampler = LengthBucketedSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padded(order, batch_size=16):
    return sum(
        LENGTHS[order[start : start + batch_size]].max() * len(order[start : start + batch_size])
        for start in range(0, len(order), batch_size)
    )


def test_every_row_once_an_epoch_in_an_order_of_its_own():
    orders = [order_of(epoch, seed) for epoch in (0, 1) for seed in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(len(LENGTHS)))
    assert len({tuple(order) for order in orders}) == 4
    assert order_of() == order_of()


def test_batches_hold_rows_of_like_length():
    assert padded(order_of()) < 1.15 * LENGTHS.sum()
    assert padded(np.random.default_rng(0).permutation(len(LENGTHS))) > 1.7 * LENGTHS.sum()


def test_lengths_come_in_no_order():
    """Neither over the epoch nor within a pool."""
    steps = len(LENGTHS) // 16
    means = [LENGTHS[order_of()[16 * step : 16 * step + 16]].mean() for step in range(steps)]
    assert abs(np.corrcoef(means, np.arange(steps))[0, 1]) < 0.25
    first = means[:POOL]
    assert first != sorted(first) and first != sorted(first, reverse=True)


def test_fewer_rows_than_a_batch_and_none():
    assert sorted(order_of(lengths=[3, 1, 2])) == [0, 1, 2]
    assert order_of(lengths=[]) == []


def test_length_bucketed_training_pads_less(values, tiny_data, tmp_path):
    """The batches that the trainer sees, of both epochs."""
    from transformers import TrainerCallback

    from hybrid_kernels.training import methods
    from hybrid_kernels.training.config import RunConfig
    from hybrid_kernels.training.data import load_nli
    from hybrid_kernels.training.trainer import train

    shapes, epochs = {}, {}
    rows = [
        row | {"hypothesis": " ".join([row["hypothesis"]] * (index % 4 + 1))}
        for index, row in enumerate(load_nli(tiny_data, "train").rows)
    ]

    class Record(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            epochs[bucketed] = []
            for epoch in (0, 1):
                train_dataloader.set_epoch(epoch)
                found = [batch["input_ids"] for batch in train_dataloader]
                shapes[bucketed] = sum(batch.numel() for batch in found)
                epochs[bucketed].append([row for batch in found for row in batch.tolist()])

    for bucketed in (False, True):
        config = RunConfig.model_validate(
            values | {"training": values["training"] | {"length_bucketed": bucketed}}
        )
        tokenizer = methods.load_tokenizer(config.model.name)
        folder = tmp_path / str(bucketed)
        train(config, config.methods[0], 0, tokenizer, rows, folder, "key", callbacks=[Record()])
    assert shapes[True] < shapes[False]
    assert epochs[True][0] != epochs[True][1]
    assert len(epochs[True][0]) == len(rows)
