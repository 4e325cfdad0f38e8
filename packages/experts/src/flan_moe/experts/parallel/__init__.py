"""Expert parallelism: each rank of a group has its own tokens and a share of the experts."""

from flan_moe.experts.parallel.clip import clip_gradients
from flan_moe.experts.parallel.ffn import parallel_expert_ffn, start_expert_ffn
from flan_moe.experts.parallel.plan import owned_experts
from flan_moe.experts.parallel.shard import ExpertParallel, shard_experts

__all__ = [
    "ExpertParallel",
    "clip_gradients",
    "owned_experts",
    "parallel_expert_ffn",
    "shard_experts",
    "start_expert_ffn",
]
