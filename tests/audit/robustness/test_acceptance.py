# SPDX-License-Identifier: Apache-2.0
"""Which test holds which acceptance test of the robustness audits (section 6 of their specification)."""

import re
from pathlib import Path

import pytest
from conftest import TESTS


EVERY, WORLD = "audit/robustness/test_every_attack", "audit/robustness/test_attacks_world"
REMAINING, COMPARE = "audit/robustness/test_remaining", "audit/robustness/test_compare"
QUANTIZE, FORMATS = "audit/quantize/test_quantize", "audit/quantize/test_quantized_formats"
RELEARN, SPLITS = "audit/relearn/test_relearn", "audit/robustness/test_splits"
SAMPLING, SOFT_PROMPT, PROMPTS = (f"audit/robustness/test_{name}" for name in ("sampling", "soft_prompt", "prompts"))
SEVERAL = "audit/robustness/test_several"
INSIDE, STATES = "audit/representation/test_representation", "audit/representation/test_states"

HELD = {
    "1 arithmetic and interval": [
        (REMAINING, "test_the_original_is_1_and_a_model_that_never_knew_is_0"),
        (REMAINING, "test_the_interval_is_that_of_a_slow_delta_method"),
        (REMAINING, "test_what_cannot_be_said_is_none_with_a_reason"),
    ],
    "2 coverage": [
        (REMAINING, "test_the_interval_holds_the_truth_as_often_as_it_says"),
        (REMAINING, "test_a_bootstrap_over_rows_would_not"),
    ],
    "3 a retrained model as the unlearned one": [
        (WORLD, "test_another_retrained_model_passes_every_attack_and_the_original_none"),
        (WORLD, "test_what_an_attack_teaches_does_not_count"),
        (WORLD, "test_shipped_gates_end_a_pipeline_as_the_model_is"),
        (RELEARN, "test_a_model_that_never_knew_passes_also_where_the_tested_rows_are_taught"),
        (COMPARE, "test_a_model_that_never_knew_is_not_suppressed_whatever_the_attack_teaches"),
    ],
    "4 the original as the unlearned one": [
        (WORLD, "test_another_retrained_model_passes_every_attack_and_the_original_none"),
        (COMPARE, "test_the_original_as_the_unlearned_model_is_suppressed_with_no_recovery"),
        (INSIDE, "test_the_anchors_are_one_and_zero"),
    ],
    "5 quantising an unchanged model": [
        (QUANTIZE, "test_an_unchanged_model_recovers_nothing"),
        (FORMATS, "test_a_format_of_its_own_values_changes_nothing"),
        (FORMATS, "test_values_are_those_of_bitsandbytes"),
        (EVERY, "test_an_attack_leaves_no_trace_wherever_it_ends"),
    ],
    "6 an update inside the bins": [(QUANTIZE, "test_an_update_inside_the_codes_is_lost_in_rounding")],
    "7 a masked head": [
        (INSIDE, "test_a_masked_head_hides_nothing_from_another"),
        ("runs/meta/test_meta_world", "test_locks_are_caught_by_audits_and_not_by_exact_match"),
    ],
    "8 a steered layer": [(WORLD, "test_a_steered_layer_is_found_by_what_reads_below_it")],
    "9 learning rates": [
        (WORLD, "test_one_learning_rate_proves_nothing_and_a_damaging_one_is_left_out"),
        (COMPARE, "test_the_strongest_setting_that_does_not_damage_is_taken"),
    ],
    "10 comparators": [
        (WORLD, "test_rows_that_no_model_saw_say_the_same"),
        (RELEARN, "test_holdout_rows_are_attacked_by_themselves"),
        (COMPARE, "test_without_a_comparator_or_an_original_nothing_is_divided"),
        (EVERY, "test_without_other_models_there_is_a_note_or_one_line"),
    ],
    "11 leaks": [
        (RELEARN, "test_an_answer_that_would_be_taught_is_refused_by_row"),
        (SPLITS, "test_wordings_of_one_fact_are_on_one_side"),
        (SPLITS, "test_across_groups_none_is_on_both_sides"),
    ],
    "12 attack rows that teach nothing": [
        (WORLD, "test_answers_of_other_rows_teach_nothing_and_free_what_is_suppressed"),
        (RELEARN, "test_answers_that_belong_to_other_rows_teach_nothing"),
        (RELEARN, "test_what_the_attacker_was_shown_is_told"),
    ],
    "13 no trace": [
        (EVERY, "test_an_attack_leaves_no_trace_wherever_it_ends"),
        (RELEARN, "test_an_attack_leaves_no_trace"),
        (RELEARN, "test_a_seed_gives_the_same_twice_and_another_seed_does_not"),
    ],
    "14 leak@k": [
        (SAMPLING, "test_the_best_of_k_is_the_mean_over_all_subsets"),
        (SAMPLING, "test_of_right_and_wrong_it_is_the_closed_form"),
        (SAMPLING, "test_it_is_unbiased_where_the_plug_in_is_not"),
        (SAMPLING, "test_a_model_without_chance_leaks_the_same_however_often_it_is_asked"),
        (SAMPLING, "test_more_draws_than_there_are_is_refused"),
    ],
    "15 true sampling": [(SAMPLING, "test_draws_are_of_the_whole_vocabulary")],
    "16 leak_exact@k": [
        (SAMPLING, "test_exact_is_one_minus_all_misses"),
        (SAMPLING, "test_probabilities_and_draws_agree"),
    ],
    "17 soft prompt": [
        (SOFT_PROMPT, "test_random_answers_are_stored_and_nothing_spreads"),
        (SOFT_PROMPT, "test_a_prompt_by_marks_is_one_of_embeddings"),
    ],
    "18 patching": [
        (STATES, "test_a_models_own_states_change_nothing_in_any_layer"),
        (STATES, "test_tuples_and_lists_keep_their_other_parts"),
        (INSIDE, "test_the_anchors_are_one_and_zero"),
        (INSIDE, "test_a_model_that_is_worse_than_one_that_never_knew_is_noted"),
    ],
    "19 prompts": [
        (PROMPTS, "test_the_maximum_is_taken_in_each_row_of_each_model"),
        (PROMPTS, "test_many_tries_do_not_find_what_is_not_there"),
        (PROMPTS, "test_a_prefill_stands_behind_the_generation_prompt_byte_for_byte"),
        (PROMPTS, "test_a_transform_that_the_original_does_not_understand_is_left_out_and_named"),
    ],
    "20 meta-evaluation": [
        ("runs/meta/test_meta_world", "test_locks_are_caught_by_audits_and_not_by_exact_match"),
        ("runs/meta/test_meta", "test_a_constant_score_tells_nothing_and_a_good_one_everything"),
        ("runs/meta/test_meta", "test_every_attack_that_says_how_much_is_left_is_tried"),
        ("audit/robustness/test_gated", "test_gates_end_a_pipeline_as_the_model_is"),
        (WORLD, "test_shipped_gates_end_a_pipeline_as_the_model_is"),
        (SEVERAL, "test_one_command_makes_all_and_one_report"),
        (REMAINING, "test_all_that_is_left_bounds_as_many_groups_as_there_are"),
    ],
    "bad input": [
        (EVERY, "test_without_other_models_there_is_a_note_or_one_line"),
        (EVERY, "test_few_groups_are_told_before_a_model_is_loaded"),
        (EVERY, "test_forget_rows_without_answers_are_refused"),
        (EVERY, "test_quantised_weights_are_read_or_refused_in_one_line"),
    ],
    "goes on": [
        (EVERY, "test_what_was_measured_before_an_end_is_read_again"),
        (RELEARN, "test_an_attack_that_was_ended_goes_on"),
    ],
}


@pytest.mark.parametrize("what", HELD)
def test_the_tests_that_hold_it_are_there(what):
    for file, name in HELD[what]:
        source = (Path(TESTS) / f"{file}.py").read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), (file, name)
