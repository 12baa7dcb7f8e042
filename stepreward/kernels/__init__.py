"""Pure array functions: levels, masked statistics, advantages, losses. They depend on no model and no environment.

All kernels compute in float32, whatever the input dtype, and follow the same rules. Masked values, NaN and infinity included,
affect neither results nor gradients. An empty input (no rows, or no True entry) gives 0.
"""

from stepreward.kernels.advantages import dr_grpo, grpo, reinforce_plus_plus, reinforce_plus_plus_baseline, rloo
from stepreward.kernels.automata import hybrid_reward, progress_reward
from stepreward.kernels.discrimination import discriminator_loss, discriminator_reward
from stepreward.kernels.levels import steps_to_tokens, tokens_to_steps
from stepreward.kernels.losses import (
    aggregate,
    aggregation_denominator,
    entropy_bonus,
    kl_k1,
    kl_k3,
    negative_log_likelihood,
    ppo_clip,
)
from stepreward.kernels.masked import (
    group_normalise,
    group_statistics,
    group_sum,
    masked_mean,
    masked_std,
    masked_var,
    masked_whiten,
    weighted_whiten,
)
from stepreward.kernels.ordering import TokenStream, token_stream
from stepreward.kernels.preferences import (
    dpo,
    dpo_pairs,
    dpo_with_sft,
    implicit_reward_cross_entropy,
    paired_winners,
    preference_pairs,
)
from stepreward.kernels.redistribution import (
    bag_sum_loss,
    contribution_sum_loss,
    potential_differences,
    return_prediction_loss,
    spread_residual,
    steps_to_go,
)
from stepreward.kernels.temporal import (
    bi_level_generalized_advantage_estimation,
    generalized_advantage_estimation,
    linear_recurrence,
    return_to_go,
)
from stepreward.kernels.values import (
    adaptive_kl_coefficient,
    clipped_value_loss,
    explained_variance,
    leave_one_out_return_to_go,
)
