# SPDX-License-Identifier: Apache-2.0
"""Which rows the attacker is shown, and what may not stand in them."""

import pytest

from hf_unlearn.audit.robustness.splits import check_leaks, split_rows


GROUPS = [f"p{i // 8}" for i in range(32)]


# Acceptance 11


def test_within_groups_every_group_is_on_both_sides():
    shown, tested = split_rows(GROUPS, 0.25, seed=1)
    assert sorted(shown + tested) == list(range(32))
    assert [sum(GROUPS[i] == name for i in shown) for name in sorted(set(GROUPS))] == [2] * 4
    assert split_rows(GROUPS, 0.25, seed=1) == (shown, tested)
    assert split_rows(GROUPS, 0.25, seed=2) != (shown, tested)


def test_across_groups_none_is_on_both_sides():
    shown, tested = split_rows(GROUPS, 0.5, "across", seed=1)
    assert sorted(shown + tested) == list(range(32))
    assert len({GROUPS[i] for i in shown}) == 2
    assert not {GROUPS[i] for i in shown} & {GROUPS[i] for i in tested}


def test_wordings_of_one_fact_are_on_one_side():
    facts = [i // 2 % 4 for i in range(32)]
    for split in ("within", "across"):
        for seed in range(5):
            shown, tested = split_rows(GROUPS, 0.5, split, seed, facts)
            names = [{(GROUPS[i], facts[i]) for i in side} for side in (shown, tested)]
            assert not names[0] & names[1]
            assert len(shown) == len(tested) == 16


def test_rows_without_groups_are_split_too():
    shown, tested = split_rows(list(range(10)), 0.3)
    assert (len(shown), len(tested)) == (3, 7)


def test_a_side_without_rows_is_refused():
    with pytest.raises(ValueError, match="32 rows in 1 groups cannot be split across groups with a share of 0.5"):
        split_rows(["a"] * 32, 0.5, "across")
    with pytest.raises(ValueError, match="share is 1; give a number between 0 and 1"):
        split_rows(GROUPS, 1)


def test_answers_that_stand_in_what_is_shown_are_refused_by_row():
    shown = ["Where is Ada? Ada lives in Old Town, near the sea.", "She keeps bees."]
    check_leaks(shown, ["New Town", "bee"], [6, 8])
    with pytest.raises(ValueError, match="tested rows 7, 9 stand in what the attacker is shown"):
        check_leaks(shown, ["New Town", "old town!", "KEEPS bees"], [6, 7, 9])
