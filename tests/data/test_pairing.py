# SPDX-License-Identifier: Apache-2.0
"""Which rows meet: a function of (seed, epoch, index), on any number of processes and workers."""

import pickle
from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader

from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.pairing import PairSampler, RolePairs


def rows(n: int, first: int) -> Dataset:
    """`n` rows, each of one token that names it."""
    return Dataset.from_dict({"input_ids": [[first + i] for i in range(n)], "labels": [[first + i] for i in range(n)]})


def make_pairs(forget: int, retain: int | None = None, **kwargs) -> RolePairs:
    roles = {"forget": rows(forget, 100)}
    if retain is not None:
        roles["retain"] = rows(retain, 500)
    return RolePairs(roles, **kwargs)


def drawn(pairs: RolePairs, positions) -> list[tuple[int, int]]:
    return [(pairs[p]["forget"]["index"], pairs[p]["retain"]["index"]) for p in positions]


def epoch(pairs: RolePairs, number: int) -> list[tuple[int, int]]:
    sampler = PairSampler(pairs)
    sampler.set_epoch(number)
    assert len(sampler) == len(pairs)
    return drawn(pairs, sampler)


def test_a_pair_holds_the_rows_its_indices_name():
    pairs = make_pairs(4, 6)
    for position in range(20):
        for role, first in (("forget", 100), ("retain", 500)):
            row = pairs[position][role]
            assert row["input_ids"] == row["labels"] == [first + row["index"]]


def test_a_pair_depends_on_seed_and_position_only():
    straight = drawn(make_pairs(5, 8, seed=3), range(40))
    pairs = make_pairs(5, 8, seed=3)
    order = [39, 0, 17, 5, 38, 4, 21, 12]
    assert drawn(pairs, order) == [straight[p] for p in order]
    assert drawn(make_pairs(5, 8, seed=4), range(40)) != straight


def test_each_epoch_sees_every_forget_row_once_in_another_order():
    pairs = make_pairs(10, 7)
    forget = [[f for f, _ in epoch(pairs, e)] for e in range(4)]
    assert all(sorted(order) == list(range(10)) for order in forget)
    assert len({tuple(order) for order in forget}) == 4


@pytest.mark.parametrize(("forget", "retain"), [(4, 10), (4, 11), (1, 7), (6, 6)])
def test_every_row_of_the_longer_set_is_used_before_any_comes_again(forget, retain):
    pairs = make_pairs(forget, retain)
    stream = [r for e in range(3 * retain) for _, r in epoch(pairs, e)]
    for cycle in range(3):
        assert sorted(stream[cycle * retain : (cycle + 1) * retain]) == list(range(retain))


def test_partners_change_from_epoch_to_epoch():
    pairs = make_pairs(20, 20)
    first, second = dict(epoch(pairs, 0)), dict(epoch(pairs, 1))
    assert sum(first[f] == second[f] for f in first) < 10


def test_orders_of_two_roles_of_one_length_differ():
    assert any(f != r for f, r in epoch(make_pairs(20, 20), 0))


@pytest.mark.parametrize(("epoch_by", "length"), [("forget", 4), ("retain", 10), ("longest", 10)])
def test_the_set_that_counts_the_epoch_is_an_option(epoch_by, length):
    pairs = make_pairs(4, 10, epoch_by=epoch_by)
    assert len(pairs) == length
    seen = Counter(f for f, _ in epoch(pairs, 0))
    assert sum(seen.values()) == length
    # The shorter set comes round again, none of its rows more than once more than another.
    assert max(seen.values()) - min(seen.values()) <= 1


def test_longest_means_forget_where_that_is_longer():
    assert len(make_pairs(12, 5, epoch_by="longest")) == 12


def test_a_role_that_is_not_trained_on_cannot_count_the_epoch():
    with pytest.raises(ValueError, match=r"epoch_by='retain' names no role.*\['forget', 'longest'\]"):
        make_pairs(4, epoch_by="retain")


def test_several_rows_of_a_tied_role_come_one_after_the_other_or_together():
    def rows(count):
        return Dataset.from_dict({"input_ids": [[number] for number in range(count)], "labels": [[0]] * count})

    roles = {"forget": rows(4), "retain": rows(3), "alternate": rows(12)}
    turns = RolePairs(roles, seed=1)
    for position in range(20):
        pair = turns[position]
        assert pair["alternate"]["index"] == 3 * pair["forget"]["index"] + position // 4 % 3
        assert pair["alternate"]["input_ids"] == [pair["alternate"]["index"]]
    together = RolePairs(roles, seed=1, together={"alternate"})
    for position in range(8):
        pair = together[position]
        own = 3 * pair["forget"]["index"]
        assert [row["index"] for row in pair["alternate"]] == [own, own + 1, own + 2]
        # What is tied changes no other order.
        assert pair["retain"] == RolePairs({r: roles[r] for r in ("forget", "retain")}, seed=1)[position]["retain"]
    seen = [{turns[p]["alternate"]["index"] for p in range(n)} for n in (1, 4, 6, 12, 14)]
    assert [{*turns.visited("alternate", n)} for n in (1, 4, 6, 12, 14)] == seen
    assert len(together.visited("alternate", 2)) == 6
    batch = RoleCollator(pad_token_id=0, roles=("forget", "retain", "alternate"))([together[0], together[1]])
    assert batch["role"].tolist() == [0, 0, 1, 1, *[2] * 6]
    own = [row["index"] for position in range(2) for row in together[position]["alternate"]]
    assert batch["index"].tolist()[4:] == batch["input_ids"].flatten().tolist()[4:] == own
    with pytest.raises(ValueError, match="There are 11 alternate rows for 4 forget rows; as many belong to each"):
        RolePairs({**roles, "alternate": rows(11)})


def test_forget_rows_alone_make_pairs_of_one():
    assert set(make_pairs(3)[0]) == {"forget"}


def test_pickled_pairs_go_on_alike():
    pairs = make_pairs(5, 8, seed=1)
    before = drawn(pairs, range(7))
    again = pickle.loads(pickle.dumps(pairs))
    assert drawn(again, range(7)) == before
    assert drawn(again, range(7, 30)) == drawn(pairs, range(7, 30))


def loaded(loader) -> list[tuple[list[int], list[int]]]:
    """Row numbers of each role, batch by batch."""
    batches = []
    for batch in loader:
        half = len(batch["index"]) // 2
        assert batch["role"].tolist() == [0] * half + [1] * half
        batches.append((batch["index"][:half].tolist(), batch["index"][half:].tolist()))
    return batches


def test_workers_load_the_same_batches_in_the_same_order():
    pairs = make_pairs(9, 13)
    collate = RoleCollator(pad_token_id=0)
    alone, shared = PairSampler(pairs), PairSampler(pairs)
    loader = DataLoader(pairs, batch_size=2, sampler=alone, collate_fn=collate)
    workers = DataLoader(pairs, batch_size=2, sampler=shared, collate_fn=collate, num_workers=2)
    for number in range(2):
        alone.set_epoch(number)
        shared.set_epoch(number)
        assert loaded(workers) == loaded(loader)


def rank_batches(pairs, number, rank, world=2, batch_size=2):
    sampler = PairSampler(pairs)
    sampler.set_epoch(number)
    shard = BatchSamplerShard(BatchSampler(sampler, batch_size, False), num_processes=world, process_index=rank)
    return [drawn(pairs, batch) for batch in shard]


def test_ranks_draw_different_rows_of_both_roles_and_miss_none():
    pairs = make_pairs(8, 24)
    for number in range(3):
        first, second = ([pair for batch in rank_batches(pairs, number, rank) for pair in batch] for rank in range(2))
        assert len(first) == len(second) == 4
        for role in range(2):
            assert not {pair[role] for pair in first} & {pair[role] for pair in second}
        assert sorted(f for f, _ in first + second) == list(range(8))


def test_two_ranks_together_see_what_one_process_of_twice_the_batch_sees():
    pairs = make_pairs(8, 12)
    for number in range(2):
        alone = rank_batches(pairs, number, 0, world=1, batch_size=4)
        ranks = [rank_batches(pairs, number, rank) for rank in range(2)]
        assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_the_epoch_reaches_the_sampler_through_accelerate_also_on_several_processes():
    pairs = make_pairs(8, 12)
    sampler = PairSampler(pairs)
    loader = prepare_data_loader(
        DataLoader(pairs, batch_size=2, sampler=sampler, collate_fn=RoleCollator(0)), num_processes=2, process_index=1
    )
    loader.set_epoch(2)
    batches = [list(zip(*batch, strict=True)) for batch in loaded(loader)]
    assert batches == rank_batches(pairs, 2, rank=1)


def test_a_skipped_epoch_of_several_processes_goes_on_where_it_stopped():
    pairs = make_pairs(8, 12)
    sampler = PairSampler(pairs)
    loader = prepare_data_loader(
        DataLoader(pairs, batch_size=2, sampler=sampler, collate_fn=RoleCollator(0)), num_processes=2, process_index=0
    )
    skipped = skip_first_batches(loader, 1)
    # What the trainer's callback does; accelerate does not reach through this wrapper.
    sampler.set_epoch(1)
    assert [list(zip(*batch, strict=True)) for batch in loaded(skipped)] == rank_batches(pairs, 1, rank=0)[1:]
