"""Every key that a run reads, with neutral values; an experiment in `configs/` states what it sets otherwise."""

from __future__ import annotations

from ml_collections import ConfigDict

from stepreward.models.published import MODELS

# What a published model's preset leaves to the devices that a run finds: how rows and weights are split over them, and whether the
# model is trained whole or through adapters, with learning rates for either.
FITS_ROWS = ("mesh.data", "mesh.fsdp", "rollout.max_rows", "train.chunk_rows")
FITS_MODEL = ("lora.rank", "lora.sft", "sft.learning_rate", "prm.learning_rate", "policy.learning_rate")


def base_config() -> ConfigDict:
    """A tiny model on Sokoban with every key set; unlocked."""
    c = ConfigDict()
    c.seed = 0

    # What is played, and the words around it.
    c.environment = ConfigDict()
    c.environment.name = "sokoban"  # a package in envs/, or the dotted name of your own module
    c.environment.preset = "tiny"  # rooms of 4 to 12 moves
    c.environment.prompt = "compact"
    c.environment.data = ""  # file or folder of the benchmark's own tasks; "": those that the environment makes itself
    c.environment.options = ConfigDict()  # more settings of the environment, each as environment.options.NAME; its docs list them
    c.environment.pool = "auto"  # "inline": in this process; "process": one process each; "ray"; "auto": as the environment advises
    c.environment.timeout_s = 60.0  # a step may take, where the environment is not inline; then its episode counts as failed
    c.environment.reset_timeout_s = 300.0
    c.environment.ray_address = ""  # of the cluster; "": the one that this machine belongs to

    c.model = ConfigDict()
    c.model.preset = "tiny-0.1m"
    c.model.path = ""  # folder of a Hugging Face model, or its name on the hub; "" starts from random weights
    c.model.pieces = 0  # a tiny model's tokens are pieces of words, this many; 0: a token an action and one for each other character
    c.model.system = ""  # system message of its chat template; "": the template's own, if it has one
    c.model.thinking = None  # True or False where the template can switch thinking on or off
    c.model.download = False  # fetch a name that is not in the hub's local cache
    c.model.compute_dtype = "float32"
    c.model.param_dtype = "float32"  # of what is trained: float32 master weights, or bfloat16
    c.model.moment_dtype = "float32"  # of Adam's first moment
    c.model.remat = "none"  # computed again in the backward pass: "layer", or "dots" (all but matrix products)
    c.model.attention = "auto"

    # Low-rank adapters: policy, reference, PRM and critic train these instead of their weights.
    c.lora = ConfigDict()
    c.lora.rank = 0  # 0: whole models
    c.lora.alpha = 16.0
    c.lora.targets = ("query", "value")
    c.lora.dropout = 0.0
    c.lora.share_base = True  # one copy of the frozen weights for all models; else one each
    c.lora.sft = False  # adapters in the warm start too; else it trains the weights that the adapters then sit on

    # Devices: rows of tokens are split over data × fsdp; -1 takes all that are left.
    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    # Keys that a run sets itself to fit the devices that it finds, see training/fitting.py. A published model's preset names them; a key
    # that the command line sets is taken out.
    c.mesh.fit = ()

    # How episodes are played, in training and in evaluation alike.
    c.rollout = ConfigDict()
    c.rollout.context = "step"  # "step": each turn is a fresh prompt; "episode": one growing conversation
    c.rollout.history = 0  # (observation, action) pairs shown in a "step" prompt
    c.rollout.groups = 32
    c.rollout.group_size = 8
    c.rollout.max_steps = 15
    c.rollout.max_rows = 256  # episodes decoded at once
    c.rollout.invalid_penalty = 0.0  # taken from the reward of a step whose answer held no action
    c.rollout.temperature = 1.0
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.max_answer_tokens = 2
    c.rollout.max_prompt_tokens = 18  # new tokens that a turn may bring
    c.rollout.max_row_tokens = 20
    c.rollout.max_image_tokens = 0  # tokens that a picture may have; 0: as many as the largest in the first tasks has
    c.rollout.long_observation = "cut"  # one that makes a prompt too long: "cut" shortens it, with a marker; "end" ends the episode

    # Finished stages of other workdirs, taken instead of being made here ("": made here). They must match this config.
    c.stages = ConfigDict()
    c.stages.sft = ""
    c.stages.exploration = ""
    c.stages.estimator = ""

    # Warm start: imitation of the exact solver, kept short so that the policy still explores.
    c.sft = ConfigDict()
    c.sft.episodes = 2000
    c.sft.updates = 100  # at most
    c.sft.stop_loss = 0.0  # mean loss of the last log_every updates at which it ends earlier; 0: never
    c.sft.rows = 256  # steps of demonstrations in an update
    c.sft.log_every = 20
    c.sft.learning_rate = 2e-3
    c.sft.warmup_updates = 20
    c.sft.max_grad_norm = 1.0

    # Episodes of the supervised policy, recorded for the estimator and for offline training; skipped where neither needs them.
    c.exploration = ConfigDict()
    c.exploration.tasks = 1024
    c.exploration.rollouts = 8  # of each task
    c.exploration.part_tasks = 128  # tasks recorded at once: what an interruption can lose

    # The progress estimator of SPA and its relatives.
    c.estimator = ConfigDict()
    c.estimator.head = "mlp"  # or "linear"
    c.estimator.learning_rate = 3e-4
    c.estimator.warmup_updates = 20
    c.estimator.decay_updates = 0  # over which the rate then falls to a tenth; 0: constant
    c.estimator.weight_decay = 0.01
    c.estimator.max_grad_norm = 1.0
    c.estimator.minibatch_episodes = 16  # in an update
    c.estimator.epochs = 10  # at most
    c.estimator.patience = 2  # epochs without a lower loss on held-out tasks before it stops
    c.estimator.held_out = 0.125  # share of the tasks that only measure
    c.estimator.refresh_every = 0  # iterations after which it goes on training on what they brought; 0: never

    # Credit. "auto" is the variant that a method recommends; "paper" and "released" are the others. The options are the fields of the
    # method's class, see docs/methods.md; what is not given here is as the variant has it.
    c.credit = ConfigDict()
    c.credit.method = "rloo"
    c.credit.variant = "auto"
    c.credit.outcome = "success"  # or "return", the sum of the environment's rewards
    c.credit.outcome_scale = 1.0
    c.credit.options = ConfigDict()

    # The process reward model of iStar and PRIME.
    c.prm = ConfigDict()
    c.prm.preset = ""  # a model other than the policy's, which must share its tokenizer
    c.prm.path = ""
    c.prm.learning_rate = 5e-4
    c.prm.warmup_updates = 0
    c.prm.weight_decay = 0.0
    c.prm.max_grad_norm = 10.0
    c.prm.minibatch_groups = 16  # of those that hold a pair; 0: all in one update, as in the paper
    c.prm.epochs = 1
    c.prm.resync = True  # start each training from the current policy; the paper's PRM goes on from where it was
    c.prm.replay = 5  # earlier batches that an update also visits
    c.prm.warmup_batches = 0  # batches of the start policy that only the PRM learns from

    # The critic of PPO, SPA and whatever else estimates advantages with values.
    c.critic = ConfigDict()
    c.critic.backbone = "separate"  # or "shared": a head on the policy's own backbone, trained with it
    c.critic.head = "mlp"
    c.critic.clip = 0.2  # 0: none
    c.critic.coef = 0.1  # weight in the policy's loss, where the backbone is shared
    c.critic.learning_rate = 1e-3
    c.critic.warmup_updates = 0
    c.critic.weight_decay = 0.0
    c.critic.max_grad_norm = 1.0
    c.critic.minibatch_rows = 1024
    c.critic.epochs = 1

    c.policy = ConfigDict()
    c.policy.learning_rate = 5e-4
    c.policy.warmup_updates = 40
    c.policy.weight_decay = 0.0
    c.policy.max_grad_norm = 1.0
    c.policy.minibatch_rows = 1024
    c.policy.epochs = 1
    c.policy.stop_kl = 0.0  # end an iteration's updates once KL(old ‖ new) exceeds this; 0: never
    c.policy.old_log_prob = "auto"  # "behaviour": as it was played; "current": recomputed; "auto": as the credit variant does
    c.policy.advantage_norm = "none"  # over the steps of the batch: "centre" or "whiten"
    c.policy.ratio = "step"
    c.policy.clip_low = 0.2
    c.policy.clip_high = 0.2
    c.policy.dual_clip = 0.0  # 0: none
    c.policy.aggregation = "step-mean"
    c.policy.constant = 1.0  # divisor of the "constant" aggregation
    c.policy.entropy_coef = 0.0
    c.policy.kl_coef = 0.0  # of KL to the supervised policy as a loss
    c.policy.kl = "k3"
    c.policy.kl_reward_coef = 0.0  # of KL to the supervised policy in the reward (methods with a critic)
    c.policy.kl_reward_target = 0.0  # KL an episode that the coefficient is adapted to hold; 0: it stays
    c.policy.kl_reward_horizon = 10_000.0  # episodes in which it may change by a fifth

    c.train = ConfigDict()
    c.train.mode = "online"  # or "offline": one pass over the explored episodes
    c.train.env_steps = 700_000  # the run ends when this many environment steps have been trained on
    c.train.chunk_rows = 256  # rows in one forward and backward pass
    c.train.check_batches = True  # check shapes and ids of every batch that is made or read, on the host: an error names what is wrong
    c.train.pack_rows = False  # several short rows in one of rollout.max_row_tokens, so that passes meet less padding

    c.eval = ConfigDict()
    c.eval.episodes = 512
    c.eval.every = 20
    c.eval.final_episodes = 0  # held-out episodes of a last stage that compares start and end; 0: no such stage
    c.eval.final_temperature = 1.0  # of that stage; 0: greedy
    c.eval.prm_as_policy_every = 20  # 0: never
    c.eval.record = 3  # episodes kept for the report

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10
    c.checkpoint.keep = 2
    c.checkpoint.folder = ""  # where they lie: a folder or gs://BUCKET/FOLDER; "": in the workdir
    return c


def use_model(c: ConfigDict, name: str) -> None:
    """Puts a published model into an experiment on Sokoban: bfloat16 compute over float32 weights, the papers' lengths, group
    size and learning rates. Its folder is looked up in the hub's cache; `model.path` names another, `model.download` fetches it.

    The batch is the papers' smaller one, 16 groups of 8. A run splits rows and weights over the devices that it finds, and trains
    adapters where the whole model does not fit (`mesh.fit`). On one small accelerator lower `rollout.groups` and
    `rollout.max_answer_tokens`, so that an iteration takes less time.
    """
    c.mesh.fit = FITS_ROWS + FITS_MODEL
    c.model.update({"preset": name, "path": MODELS[name], "compute_dtype": "bfloat16", "remat": "layer"})
    sees = "_image" if "-vl-" in name else ""
    c.environment.update({"preset": f"istar{sees}", "prompt": f"istar{sees}"})
    c.rollout.update({"groups": 16, "group_size": 8, "max_steps": 15, "max_rows": 128, "history": 0 if "-vl-" in name else 2})
    c.rollout.update({"max_prompt_tokens": 1024, "max_answer_tokens": 512, "max_row_tokens": 1024 + 512})
    c.sft.update({"episodes": 500, "updates": 40, "rows": 64, "log_every": 10, "learning_rate": 1e-5, "warmup_updates": 10})
    c.exploration.update({"tasks": 256, "part_tasks": 32})
    c.estimator.update({"learning_rate": 3e-6, "warmup_updates": 50, "minibatch_episodes": 16, "epochs": 2})
    c.prm.update({"learning_rate": 1e-6, "minibatch_groups": 8, "replay": 0})
    c.critic.update({"learning_rate": 1e-5, "minibatch_rows": 64})
    c.policy.update({"learning_rate": 5e-7, "warmup_updates": 0, "minibatch_rows": 64})
    c.train.update({"env_steps": 200 * 16 * 8 * 15, "chunk_rows": 8})
    c.eval.update({"episodes": 128, "every": 5, "final_episodes": min(c.eval.final_episodes, 512), "prm_as_policy_every": 0})
