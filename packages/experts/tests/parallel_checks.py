"""The checks for each kind of device and number of ranks, in the order in which they are made."""

import parallel_gradient_checks as gradients
import parallel_run_checks as running
import parallel_state_checks as state

ON_GPUS = [
    gradients.every_share_of_experts_gives_the_numbers_of_one_process,
    gradients.tokens_without_rows_get_exact_zero,
    gradients.a_summed_loss_is_not_divided,
]
CHECKS = {
    ("cuda", 1): ON_GPUS,
    ("cuda", 2): ON_GPUS,
    ("cpu", 4): [
        gradients.every_share_of_experts_gives_the_numbers_of_one_process,
        gradients.biases_scales_and_activations_are_covered,
        gradients.tokens_without_rows_get_exact_zero,
        gradients.an_expert_without_rows_has_a_gradient_of_zero,
        gradients.a_summed_loss_is_not_divided,
        gradients.gradients_accumulate_over_microbatches,
        gradients.float32_differs_by_rounding_only,
        gradients.the_functional_form_takes_local_weights,
        gradients.what_is_frozen_gets_no_gradient_and_the_rest_the_same,
        gradients.five_steps_under_ddp_are_those_of_one_process,
        gradients.clipping_sees_the_gradients_of_all_ranks,
        gradients.fsdp_shards_replicas_of_the_experts_further,
        running.dropout_is_reproducible,
        running.activation_checkpointing_repeats_the_exchange,
        running.under_autocast_rows_travel_in_its_dtype,
        running.evaluation_keeps_nothing,
        state.four_ranks_save_one_checkpoint,
        state.a_full_state_dict_gathers_the_experts,
    ],
    ("cpu", 2): [
        gradients.every_share_of_experts_gives_the_numbers_of_one_process,
        running.the_shared_expert_runs_while_rows_are_under_way,
        running.what_does_not_fit_is_named_by_shard_experts,
        running.what_does_not_fit_is_named_by_parallel_expert_ffn,
        state.two_ranks_load_what_four_saved,
        state.a_layer_on_the_meta_device_is_made_in_shards,
        state.weights_that_layers_share_stay_shared,
    ],
}
