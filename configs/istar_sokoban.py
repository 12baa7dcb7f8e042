"""iStar on Sokoban: step rewards from an implicit process reward model.

    python launch/train.py --config=configs/istar_sokoban.py            # tiny: a small model from scratch, on a CPU
    python launch/train.py --config=configs/istar_sokoban.py:micro      # seconds; for tests

`get_config("paper")` states the numbers of the paper (arXiv 2509.19199) for VisualSokoban. Its models cannot be loaded yet, so
training it ends with the list of those that can: policy Qwen2.5-VL-7B-Instruct, PRM the text-only Qwen2.5-7B-Instruct. Two numbers
have no key: the 200 iterations are stated as their environment steps, and the paper evaluates at temperature 0.4, where
`eval` plays as in training.
"""

from ml_collections import ConfigDict

PRESETS = ("tiny", "micro", "paper")
CREDIT_FLAGS = (
    "beta", "alpha", "episode_advantage", "granularity", "prm_objective", "prm_beta", "trajectory_reduce", "nll_coef",
    "step_norm", "step_norm_floor", "step_advantage", "baseline", "merge", "reference", "reward_from", "prm_frozen",
    "step_reward", "alpha_scaled", "singleton", "eps",
)  # fmt: skip


def get_config(preset: str = "tiny") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(PRESETS)}")
    c = ConfigDict()
    c.seed = 0

    # What is played, and the words around it.
    c.environment = ConfigDict()
    c.environment.name = "sokoban"  # a package in envs/, or the dotted name of your own module
    c.environment.preset = "tiny"  # rooms of 4 to 12 moves
    c.environment.prompt = "compact"
    c.environment.levels = ""  # file or folder of Boxoban levels; "" generates rooms

    c.model = ConfigDict()
    c.model.preset = "tiny-0.1m"
    c.model.compute_dtype = "float32"
    c.model.remat = False

    # Devices: rows of tokens are split over data × fsdp; -1 takes all that are left.
    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    # How episodes are played, in training and in evaluation alike.
    c.rollout = ConfigDict()
    c.rollout.context = "step"  # "step": each turn is a fresh prompt; "episode": one growing conversation
    c.rollout.history = 0  # (observation, action) pairs shown in a "step" prompt
    c.rollout.groups = 32
    c.rollout.group_size = 8
    c.rollout.max_steps = 15
    c.rollout.max_rows = 256  # episodes decoded at once
    c.rollout.temperature = 1.0
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.max_answer_tokens = 2
    c.rollout.max_prompt_tokens = 18  # new tokens that a turn may bring
    c.rollout.max_row_tokens = 20

    # Warm start: imitation of the exact solver, kept short so that the policy still explores.
    c.sft = ConfigDict()
    c.sft.episodes = 2000
    c.sft.updates = 100
    c.sft.rows = 256  # steps of demonstrations in an update
    c.sft.log_every = 20
    c.sft.learning_rate = 2e-3
    c.sft.warmup_updates = 20
    c.sft.max_grad_norm = 1.0

    # Credit. "auto" is the variant that a method recommends (for iStar "stable", see docs/log.md); "paper" and "released" are the
    # others. None leaves a flag as the variant has it; docs/methods.md lists them.
    c.credit = ConfigDict()
    c.credit.method = "istar"
    c.credit.variant = "auto"
    c.credit.outcome = "success"  # or "return", the sum of the environment's rewards
    c.credit.outcome_scale = 1.0
    c.credit.options = ConfigDict({flag: None for flag in CREDIT_FLAGS})

    # The process reward model's training.
    c.prm = ConfigDict()
    c.prm.learning_rate = 5e-4
    c.prm.warmup_updates = 0
    c.prm.weight_decay = 0.0
    c.prm.max_grad_norm = 10.0
    c.prm.minibatch_groups = 16  # of those that hold a pair; 0: all in one update, as in the paper
    c.prm.epochs = 1
    c.prm.resync = True  # start each training from the current policy; the paper's PRM goes on from where it was
    c.prm.replay = 5  # earlier batches that an update also visits
    c.prm.warmup_batches = 0  # batches of the start policy that only the PRM learns from

    c.policy = ConfigDict()
    c.policy.learning_rate = 5e-4
    c.policy.warmup_updates = 40
    c.policy.weight_decay = 0.0
    c.policy.max_grad_norm = 1.0
    c.policy.minibatch_rows = 1024
    c.policy.epochs = 1
    c.policy.advantage_norm = "centre"  # over the steps of the batch; "none" is the paper's
    c.policy.ratio = "step"
    c.policy.clip_low = 0.2
    c.policy.clip_high = 0.2
    c.policy.dual_clip = 0.0  # 0: none
    c.policy.aggregation = "step-mean"
    c.policy.constant = 1.0  # divisor of the "constant" aggregation
    c.policy.entropy_coef = 0.0
    c.policy.kl_coef = 0.0
    c.policy.kl = "k3"

    # The run ends when this many environment steps have been trained on.
    c.train = ConfigDict()
    c.train.env_steps = 700_000
    c.train.chunk_rows = 256  # rows in one forward and backward pass

    c.eval = ConfigDict()
    c.eval.episodes = 512
    c.eval.every = 20
    c.eval.prm_as_policy_every = 20  # 0: never
    c.eval.record = 3  # episodes kept for the report

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10
    c.checkpoint.keep = 2
    {"tiny": lambda c: None, "micro": _micro, "paper": _paper}[preset](c)
    return c


def _micro(c: ConfigDict) -> None:
    """A run of a few seconds through every phase; the rooms are easy, so that groups hold successes and failures."""
    c.environment.preset = "istar"
    c.environment.prompt = "compact"
    c.model.preset = "tiny-micro"
    c.rollout.update({"context": "step", "history": 0, "groups": 4, "group_size": 4, "max_steps": 8, "max_rows": 16})
    c.rollout.update({"max_answer_tokens": 2, "max_prompt_tokens": 18, "max_row_tokens": 20})
    c.sft.update({"episodes": 60, "updates": 100, "rows": 64, "log_every": 50, "learning_rate": 1e-2, "warmup_updates": 10})
    c.prm.update({"learning_rate": 1e-3, "warmup_updates": 0, "minibatch_groups": 2, "resync": False, "replay": 0})
    c.policy.update({"learning_rate": 1e-3, "warmup_updates": 2, "minibatch_rows": 64})
    c.train.update({"env_steps": 300, "chunk_rows": 16})
    c.eval.update({"episodes": 16, "every": 2, "prm_as_policy_every": 2, "record": 3})
    c.checkpoint.update({"every": 2, "keep": 2})


def _paper(c: ConfigDict) -> None:
    """VisualSokoban as the paper and its release state it: no warm start, no KL, constant learning rates."""
    c.environment.preset = "istar"  # 6 × 6 cells, one box; -0.1 for an answer without an action
    c.environment.prompt = "istar_image"
    c.model.update({"preset": "qwen2.5-vl-7b", "compute_dtype": "bfloat16", "remat": True})
    c.rollout.update({"context": "step", "history": 0, "groups": 32, "group_size": 8, "max_steps": 15, "max_rows": 256})
    c.rollout.update({"temperature": 1.0, "top_k": 0, "top_p": 1.0})
    c.rollout.update({"max_prompt_tokens": 1024, "max_answer_tokens": 512, "max_row_tokens": 1024 + 512})
    c.sft.update({"episodes": 1, "updates": 0})
    c.credit.update({"method": "istar", "variant": "paper", "outcome": "return", "outcome_scale": 1.0})
    c.credit.options.update({"alpha": 1.0, "beta": 0.05, "episode_advantage": "rloo"})
    c.prm.update({"learning_rate": 1e-6, "warmup_updates": 0, "weight_decay": 0.0, "max_grad_norm": 10.0})
    c.prm.update({"minibatch_groups": 0, "epochs": 1, "resync": False, "replay": 0, "warmup_batches": 0})
    c.policy.update({"learning_rate": 5e-7, "warmup_updates": 0, "weight_decay": 0.0, "minibatch_rows": 64, "epochs": 1})
    c.policy.update({"ratio": "step", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0, "aggregation": "step-mean"})
    c.policy.update({"advantage_norm": "none", "entropy_coef": 0.0, "kl_coef": 0.0})
    c.train.update({"env_steps": 200 * 32 * 8 * 15, "chunk_rows": 8})  # 200 iterations of full-length episodes
    c.eval.update({"episodes": 128, "every": 5, "prm_as_policy_every": 0})
    c.checkpoint.update({"every": 50, "keep": 2})
