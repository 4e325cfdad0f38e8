"""Expert parallelism, on real processes: gloo on CPU, NCCL where there are two GPUs.

The ranks of one number start once and make all their checks (`parallel_checks`); a test here says
how one of them ended.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint

from flan_moe.experts import Experts
from flan_moe.experts.parallel import clip_gradients, owned_experts

PROGRAM = Path(__file__).with_name("parallel_world.py")


def run_ranks(ranks, folder, device="cpu"):
    """The name of every check and how it ended: "", or what went wrong on the ranks."""
    command = [sys.executable, PROGRAM, str(ranks), folder, device]
    world = subprocess.run(command, capture_output=True, text=True)
    said = world.stdout + world.stderr
    outcomes = {}
    for rank in range(ranks):
        report = folder / f"rank{rank}of{ranks}_{device}.json"
        assert report.exists(), f"rank {rank} died:\n{said}"
        for name, failure in json.loads(report.read_text()).items():
            outcomes[name] = outcomes.get(name, "")
            if failure:
                outcomes[name] += f"\nrank {rank}: {failure}"
    assert world.returncode == 0, f"a rank ended badly:\n{said}"
    return outcomes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def four(folder):
    return run_ranks(4, folder)


@pytest.fixture(scope="module")
def two(folder, four):
    """After the four, whose checkpoints they load."""
    return run_ranks(2, folder)


def passed(outcomes, check):
    assert check in outcomes, "not reached: an earlier check failed"
    assert not outcomes[check], outcomes[check]


@pytest.mark.parametrize(
    "check",
    [
        "every_share_of_experts_gives_the_numbers_of_one_process",
        "biases_scales_and_activations_are_covered",
        "tokens_without_rows_get_exact_zero",
        "an_expert_without_rows_has_a_gradient_of_zero",
        "a_summed_loss_is_not_divided",
        "gradients_accumulate_over_microbatches",
        "float32_differs_by_rounding_only",
        "the_functional_form_takes_local_weights",
        "what_is_frozen_gets_no_gradient_and_the_rest_the_same",
        "five_steps_under_ddp_are_those_of_one_process",
        "clipping_sees_the_gradients_of_all_ranks",
        "fsdp_shards_replicas_of_the_experts_further",
        "dropout_is_reproducible",
        "activation_checkpointing_repeats_the_exchange",
        "under_autocast_rows_travel_in_its_dtype",
        "evaluation_keeps_nothing",
        "four_ranks_save_one_checkpoint",
        "a_full_state_dict_gathers_the_experts",
    ],
)
def test_on_four_ranks(check, four):
    passed(four, check)


@pytest.mark.parametrize(
    "check",
    [
        "every_share_of_experts_gives_the_numbers_of_one_process",
        "the_shared_expert_runs_while_rows_are_under_way",
        "what_does_not_fit_is_named_by_shard_experts",
        "what_does_not_fit_is_named_by_parallel_expert_ffn",
        "two_ranks_load_what_four_saved",
        "a_layer_on_the_meta_device_is_made_in_shards",
        "weights_that_layers_share_stay_shared",
    ],
)
def test_on_two_ranks(check, two):
    passed(two, check)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("num_experts", [8, 5, 3])
def test_one_process_loads_what_four_saved_into_plain_tensors(num_experts, four, folder):
    passed(four, "four_ranks_save_one_checkpoint")
    whole = torch.load(folder / f"whole{num_experts}.pt")
    state = {
        name.removeprefix("/model/"): torch.full_like(value, torch.nan)
        for name, value in whole.items()
        if name.startswith("/model/")
    }
    expected = {name: whole[f"/model/{name}"] for name in state}
    checkpoint.load({"model": state}, checkpoint_id=folder / f"checkpoint{num_experts}")
    assert "experts.wi" in state
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("num_experts", [1, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_experts_are_owned_by_the_rule_of_torch_chunk(num_experts, ranks):
    chunks = [chunk.tolist() for chunk in torch.arange(num_experts).chunk(ranks)]
    chunks += [[]] * (ranks - len(chunks))
    assert [list(owned_experts(num_experts, ranks, rank)) for rank in range(ranks)] == chunks


def test_experts_that_are_not_sharded_need_no_distribution():
    script = "import sys, flan_moe.experts; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert Experts(4, 8, 8).parallel is None


def test_a_single_parameter_is_clipped_whole():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients(parameter, 1.0) == 5.0
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
def test_on_gpus(ranks, folder):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} CUDA devices")
    outcomes = run_ranks(ranks, folder, "cuda")
    assert len(outcomes) == 3
    for check in outcomes:
        passed(outcomes, check)
