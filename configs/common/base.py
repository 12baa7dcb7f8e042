"""Every key that a run reads, with a neutral value. An experiment in `configs/` sets only the keys that it changes.

Unless a comment says otherwise, an "update" is one optimizer step, an "iteration" is one batch of episodes and the updates on it, and a
"row" is one sequence of tokens: one step where `rollout.context` is "step", one episode where it is "episode".
"""

from __future__ import annotations

from ml_collections import ConfigDict

from stepreward.models.published import MODELS

# Keys that a published model's preset leaves to the run, which chooses them for the devices that it finds (`mesh.fit`): how rows and
# weights are split over the devices; and whether whole weights or adapters are trained, with the learning rates for either case.
FITS_ROWS = ("mesh.data", "mesh.fsdp", "rollout.max_rows", "train.chunk_rows")
FITS_MODEL = ("lora.rank", "lora.sft", "sft.learning_rate", "prm.learning_rate", "policy.learning_rate")


def base_config() -> ConfigDict:
    """Returns an unlocked config with every key: a tiny model on Sokoban."""
    c = ConfigDict()
    c.seed = 0
    c.tracker = "none"  # copies metrics.jsonl to "tensorboard", "wandb" (offline without WANDB_MODE) or "trackio"; docs/runs.md

    # The environment, and the prompt that turns its observations into text for the model.
    c.environment = ConfigDict()
    c.environment.name = "sokoban"  # a package in envs/, or the dotted name of your own module
    c.environment.preset = "tiny"  # rooms that take 4 to 12 moves
    c.environment.prompt = "compact"
    c.environment.data = ""  # file or folder with the benchmark's own tasks; "": the environment makes its tasks itself
    c.environment.options = ConfigDict()  # further settings, each as environment.options.NAME; the environment's page in docs/ lists them
    c.environment.pool = "auto"  # where environments run: "inline", "thread", "process" or "ray"; "auto": as the environment recommends
    c.environment.timeout_s = 60.0  # seconds a step may take before its episode counts as failed; "inline" and "thread" have no limit
    c.environment.reset_timeout_s = 300.0  # the same limit for a reset, and for making the environment
    c.environment.ray_address = ""  # "HOST:PORT", "auto" (the cluster of this machine) or "local" (start one); "": the variable RAY_ADDRESS

    # Several environments in one run (docs/runs.md). An entry of `environments` is a group: the keys of `environment`, of which it sets those
    # that differ from the group above, and `share`, `outcome`, `max_steps` and `history`. Without entries, the group above is the environment.
    c.mixture = ConfigDict()
    c.mixture.environments = ConfigDict()  # each as mixture.environments.NAME.KEY
    c.mixture.order = "joint"  # "joint": all in each iteration; "sequential": in the order of `sequence`; "transfer": in a measured order
    c.mixture.sequence = ()  # "sequential": the names of the environments to train on, one after the other
    c.mixture.transfer = ""  # "transfer": JSON file with the matrix of backward transfer, as experiments/transfer.py writes it

    c.model = ConfigDict()
    c.model.preset = "tiny-0.1m"
    c.model.path = ""  # a Hugging Face model's folder or name on the hub, a GGUF file, or pip:PACKAGE; "": random weights
    c.model.pieces = 0  # vocabulary size of a tiny model's word-piece tokenizer; 0: one token an action, one for each other character
    c.model.system = ""  # system message in the chat template; "": the template's own, if it has one
    c.model.thinking = None  # True or False switches thinking on or off, if the chat template supports it
    c.model.download = False  # download the model if the hub's local cache does not hold it
    c.model.compute_dtype = "float32"
    c.model.param_dtype = "float32"  # dtype of trained weights: "float32" (master weights) or "bfloat16"
    c.model.moment_dtype = "float32"  # dtype of Adam's first moment
    c.model.remat = "none"  # what the backward pass recomputes: "none", "layer" (everything), "dots" (all but matrix products)
    c.model.attention = "auto"

    # Low-rank adapters. With a rank above 0, policy, reference, PRM and critic train adapters on frozen weights.
    c.lora = ConfigDict()
    c.lora.rank = 0  # 0: no adapters, all weights are trained
    c.lora.alpha = 16.0  # the adapter's output is scaled by alpha / rank
    c.lora.targets = ("query", "value")  # projections that get an adapter
    c.lora.dropout = 0.0  # share of an adapter's inputs that a training pass drops
    c.lora.share_base = True  # True: all models share one copy of the frozen weights; False: each model has its own copy
    c.lora.sft = False  # True: the warm start trains adapters too; False: it trains the weights that are frozen afterwards

    # Sizes of the device mesh. Rows are split over data × fsdp devices; -1 takes all remaining devices.
    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    # Keys that the run chooses for the devices that it finds (training/fitting.py). A published model's preset lists them; setting a key
    # on the command line removes it from the list.
    c.mesh.fit = ()

    # How episodes are played, in training and in evaluation.
    c.rollout = ConfigDict()
    c.rollout.context = "step"  # "step": every turn has a fresh prompt; "episode": one growing conversation
    c.rollout.history = 0  # earlier (observation, action) pairs that a "step" prompt shows
    c.rollout.groups = 32  # groups an iteration; the episodes of a group have the same task and initial state
    c.rollout.group_size = 8  # episodes a group
    c.rollout.max_steps = 15  # steps an episode, at most
    c.rollout.max_rows = 256  # episodes decoded at once
    # "free": no row waits for another one's answer or environment. "lockstep": all wait in every turn; the episodes are the same, bit for bit.
    # "batch": as "lockstep", in one program a turn; several processes, a mesh, pictures and reference answers imply it.
    c.rollout.ahead = 0  # 1: the next iteration is played while this one is learnt from, by a policy that is one iteration old
    c.rollout.schedule = "free"
    c.rollout.invalid_penalty = 0.0  # subtracted from the reward of a step whose answer contains no action
    c.rollout.temperature = 1.0
    c.rollout.top_k = 0  # 0: no limit
    c.rollout.top_p = 1.0
    c.rollout.max_answer_tokens = 2
    c.rollout.max_prompt_tokens = 18  # new tokens that one turn may add to the prompt
    c.rollout.max_row_tokens = 20  # tokens a row: prompts and answers together
    c.rollout.max_image_tokens = 0  # tokens an image; 0: as many as the largest image of the first tasks has
    c.rollout.long_observation = (
        "cut"  # if the prompt is too long: "cut" shortens the observation and marks the cut, "end" ends the episode
    )

    # Workdirs of other runs whose finished stages are used instead of running the stage here; "": run it here. Their configs must match.
    c.stages = ConfigDict()
    c.stages.sft = ""
    c.stages.exploration = ""
    c.stages.estimator = ""
    c.stages.preference = ""  # of this one, the recorded pairs are trained on

    # Warm start: supervised learning on the expert's demonstrations, kept short so that the policy still explores.
    c.sft = ConfigDict()
    c.sft.episodes = 2000  # demonstrations
    c.sft.updates = 100  # at most
    c.sft.stop_loss = 0.0  # stop when the mean loss over log_every updates is below this; 0: never
    c.sft.rows = 256  # rows an update
    c.sft.log_every = 20  # updates
    c.sft.learning_rate = 2e-3
    c.sft.warmup_updates = 20
    c.sft.max_grad_norm = 1.0

    # Recorded episodes of the supervised policy, for the estimator and for offline training. The stage is skipped if neither needs them.
    c.exploration = ConfigDict()
    c.exploration.tasks = 1024
    c.exploration.rollouts = 8  # episodes a task
    c.exploration.part_tasks = 128  # tasks recorded at once; an interruption loses at most one such part

    # The progress estimator of SPA-RL and related methods.
    c.estimator = ConfigDict()
    c.estimator.head = "mlp"  # or "linear"
    c.estimator.attention = "causal"  # or "bidirectional": it reads whole episodes in both directions (RBT), if a row is an episode
    c.estimator.learning_rate = 3e-4
    c.estimator.warmup_updates = 20
    c.estimator.decay_updates = 0  # updates over which the rate then falls linearly to a tenth; 0: it stays constant
    c.estimator.weight_decay = 0.01
    c.estimator.max_grad_norm = 1.0
    c.estimator.minibatch_episodes = 16  # episodes an update
    c.estimator.epochs = 10  # at most
    c.estimator.patience = 2  # stop after more than this many epochs without a lower loss on the held-out tasks
    c.estimator.held_out = 0.125  # share of the explored tasks that is only measured on
    c.estimator.refresh_every = 0  # every so many iterations, train the estimator on the batches since the last time; 0: never

    # Credit. "auto" is the variant that the method recommends; "paper" and "released" are the others. The options are the fields of the
    # method's class (docs/methods.md); an option that is not set here has the variant's value.
    c.credit = ConfigDict()
    c.credit.method = "rloo"
    c.credit.variant = "auto"
    c.credit.outcome = "success"  # or "return", the sum of the environment's rewards
    c.credit.outcome_scale = 1.0  # the outcome is multiplied by this
    c.credit.exact = False  # compute exact advantages, where the environment knows its transitions, and compare the credit with them
    c.credit.options = ConfigDict()
    # Coefficients of the method that change during a run, each as credit.schedules.NAME: "linear(1.0, 0.1, 100)" over iterations,
    # "success(1, 0, 0.2, 0.8)" by the training success, or "pair_accuracy(0, 1)" by that of the PRM (docs/methods.md).
    c.credit.schedules = ConfigDict()

    # Which groups are trained on, chosen before the credit method sees the batch. The others are masked, and count as played.
    c.filter = ConfigDict()
    c.filter.kind = "auto"  # "auto": the method's; "none": all; "variance", "accuracy", "top_share", "top_p": see credit/filters.py
    c.filter.share = 0.25  # share of the groups ("top_share") or of the weights ("top_p") that is kept, by the std of the outcomes
    c.filter.weights = "linear"  # weights of "top_p": the std itself, or its "softmax"
    c.filter.low = 0.2  # "accuracy" keeps the groups with a success rate from low to high
    c.filter.high = 0.8
    c.filter.rounds = 1  # rounds of new groups that an iteration may play until none of its groups is dropped, at most

    # Preference learning, a stage before reinforcement learning: rounds of exploring, forming pairs, and training on them.
    c.preference = ConfigDict()
    c.preference.method = ""  # "eto", "ipr", "rro", "cso", "stepagent" or "online_dpo"; "": no such stage
    c.preference.options = ConfigDict()  # the fields of the method's class (docs/preference.md)
    c.preference.tasks = 256  # training tasks of a round
    c.preference.part_tasks = 64  # tasks explored and recorded at once; an interruption loses at most one such part
    c.preference.epochs = 3  # passes over the pairs of a round
    c.preference.minibatch_pairs = 32  # pairs an update
    c.preference.learning_rate = 3e-4
    c.preference.warmup_updates = 5
    c.preference.weight_decay = 0.0
    c.preference.max_grad_norm = 1.0
    c.preference.reference = "start"  # the reference policy: that at the "start" of the stage, or of each "round"
    c.preference.then_train = False  # False: the run ends after this stage; True: reinforcement learning goes on from its policy

    # The process reward model (PRM) of iStar and PRIME.
    c.prm = ConfigDict()
    c.prm.preset = ""  # a model other than the policy's, with the same tokenizer; "": the policy's
    c.prm.path = ""
    c.prm.learning_rate = 5e-4
    c.prm.warmup_updates = 0
    c.prm.weight_decay = 0.0
    c.prm.max_grad_norm = 10.0
    c.prm.minibatch_groups = 16  # groups an update, of those with both outcomes; 0: all in one update, as in the paper
    c.prm.epochs = 1
    c.prm.resync = True  # True: each training starts from the current policy; False: from the PRM's last weights, as in the paper
    c.prm.replay = 5  # earlier batches that each training also uses
    c.prm.warmup_batches = 0  # batches of the initial policy that train the PRM alone, before the policy learns

    # Two frozen policies that progress advantage compares. Each is the workdir of a run with the same tokenizer, or a model folder.
    c.frozen_pair = ConfigDict()
    c.frozen_pair.trained = ""  # of a workdir: the policy of its latest checkpoint
    c.frozen_pair.start = ""  # the policy that its training started from; "": the supervised policy of that workdir

    # What HCAPO tells the policy in hindsight, at the end of each message of a successful episode.
    c.hindsight = ConfigDict()
    c.hindsight.text = "\n(hindsight) The task was solved. The final state:\n{state}\n"  # {state}: the final observation
    c.hindsight.max_tokens = 128  # tokens that a row may have beside rollout.max_row_tokens; a step that needs more has no hindsight

    # The expert that proposes single actions to a preference method such as CSO (training/experts.py).
    c.expert = ConfigDict()
    c.expert.kind = "environment"  # the environment's own; or "endpoint": a language model behind an OpenAI-compatible address
    c.expert.url = ""  # that address, up to and including /v1
    c.expert.model = "default"  # name of the model there
    c.expert.instruction = ""  # system message of each request; "": none
    c.expert.key_variable = "OPENAI_API_KEY"  # environment variable that holds the key, if the server wants one
    c.expert.temperature = 1.0
    c.expert.timeout_s = 60.0  # seconds for one request
    c.expert.retries = 3  # tries after a request that got no answer
    c.expert.parallel = 8  # requests that wait at the same time

    # The judge, which scores the steps of PPR and CSO, and the outcomes of a mixture (training/judges.py).
    c.judge = ConfigDict()
    c.judge.kind = "rules"  # or "endpoint": a language model behind an OpenAI-compatible address
    c.judge.url = ""  # that address, up to and including /v1
    c.judge.model = "default"  # name of the model there
    c.judge.key_variable = "OPENAI_API_KEY"  # environment variable that holds the key, if the server wants one
    c.judge.temperature = 0.0
    c.judge.timeout_s = 60.0  # seconds for one request
    c.judge.retries = 3  # tries after a request that got no answer; an answer without a score is asked for once more
    c.judge.parallel = 8  # requests that wait at the same time
    c.judge.history = 10  # earlier steps that a request shows
    c.judge.max_characters = 2000  # of an observation or an answer that a request shows; longer ones are cut in the middle

    # The discriminator of StepAgent and reward phasing, which tells the expert's steps from the policy's.
    c.discriminator = ConfigDict()
    c.discriminator.head = "mlp"  # or "linear"
    c.discriminator.learning_rate = 1e-3
    c.discriminator.warmup_updates = 0
    c.discriminator.weight_decay = 0.0
    c.discriminator.max_grad_norm = 1.0
    c.discriminator.minibatch_episodes = 64  # episodes an update, the policy's and demonstrations together
    c.discriminator.epochs = 1  # passes over an iteration's episodes

    # The critic of PPO, SPA-RL and every other method that estimates advantages from values.
    c.critic = ConfigDict()
    c.critic.backbone = "separate"  # or "shared": a head on the policy's backbone, trained together with the policy
    c.critic.head = "mlp"  # or "linear"
    c.critic.clip = 0.2  # clipping range of the value loss; 0: no clipping
    c.critic.coef = 0.1  # weight of the value loss in the policy's loss, if the backbone is shared
    c.critic.learning_rate = 1e-3
    c.critic.warmup_updates = 0
    c.critic.weight_decay = 0.0
    c.critic.max_grad_norm = 1.0
    c.critic.minibatch_rows = 1024  # rows an update
    c.critic.epochs = 1

    c.policy = ConfigDict()
    c.policy.learning_rate = 5e-4
    c.policy.warmup_updates = 40
    c.policy.weight_decay = 0.0
    c.policy.max_grad_norm = 1.0
    c.policy.minibatch_rows = 1024  # rows an update
    c.policy.epochs = 1
    c.policy.stop_kl = 0.0  # end an iteration's updates once KL(old ‖ new) exceeds this, in nats a token; 0: never
    c.policy.old_log_prob = "auto"  # "behaviour": recorded while playing; "current": recomputed; "auto": as the credit variant does
    c.policy.advantage_norm = "none"  # over the steps of the batch: "centre" (mean 0) or "whiten" (also standard deviation 1)
    c.policy.ratio = "step"  # level of the importance ratio: "step" or "token"
    c.policy.clip_low = 0.2  # the ratio is clipped to [1 − clip_low, 1 + clip_high]
    c.policy.clip_high = 0.2
    c.policy.importance_cap = 2.0  # with rollout.ahead: the largest weight of an action that the older policy has sampled
    c.policy.dual_clip = 0.0  # bound on the loss of negative advantages; 0: no bound
    c.policy.aggregation = "step-mean"  # how the loss is averaged over tokens, see kernels/losses.py
    c.policy.constant = 1.0  # divisor of the aggregation "constant": the longest response in tokens
    c.policy.entropy_coef = 0.0
    c.policy.kl_coef = 0.0  # weight of the KL to the supervised policy in the loss
    c.policy.kl = "k3"  # estimator of that KL: "k1" or "k3"
    c.policy.kl_reward_coef = 0.0  # weight of the KL to the supervised policy in the reward (methods with a critic)
    c.policy.kl_reward_target = 0.0  # KL an episode, in nats, that the weight is adapted to reach; 0: the weight is constant
    c.policy.kl_reward_horizon = 10_000.0  # episodes over which that weight changes by at most 20 %

    c.train = ConfigDict()
    c.train.mode = "online"  # or "offline": one pass over the explored episodes
    c.train.env_steps = 700_000  # the run ends after training on this many environment steps
    c.train.chunk_rows = 256  # rows in one forward and backward pass; gradients are summed over the chunks of an update
    c.train.check_batches = True  # check shapes and ids of every batch on the host; the error names the faulty array
    c.train.pack_rows = False  # put several short rows into one row of rollout.max_row_tokens, which reduces padding

    c.eval = ConfigDict()
    c.eval.episodes = 512  # held-out episodes an evaluation
    c.eval.every = 20  # iterations
    c.eval.final_episodes = 0  # held-out episodes of a last stage that compares initial and final policy; 0: no such stage
    c.eval.final_temperature = 1.0  # sampling temperature of that stage; 0: greedy
    c.eval.prm_as_policy_every = 20  # an evaluation at a multiple of so many iterations also plays the PRM as a policy; 0: never
    c.eval.record = 3  # episodes kept for the report at each evaluation

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10  # ticks; while the policy learns, a tick is an iteration
    c.checkpoint.keep = 2  # how many of the latest checkpoints are kept
    c.checkpoint.folder = ""  # a folder or gs://BUCKET/FOLDER; "": in the workdir
    return c


def use_model(c: ConfigDict, name: str) -> None:
    """Sets a published model for an experiment on Sokoban, with the papers' lengths, group size and learning rates.

    The model computes in bfloat16 over float32 weights. It is looked up in the hub's local cache; `model.path` names another folder, and
    `model.download` downloads it. A batch has 16 groups of 8 episodes, the smaller of the papers' batches. The run splits rows and
    weights over the devices that it finds, and trains adapters if whole weights do not fit (`mesh.fit`). On one small accelerator, lower
    `rollout.groups` and `rollout.max_answer_tokens` to shorten an iteration.

    Args:
      c: the config to change.
      name: a key of `MODELS`.
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
    c.preference.update({"tasks": 128, "part_tasks": 32, "minibatch_pairs": 16, "learning_rate": 1e-6})
    c.prm.update({"learning_rate": 1e-6, "minibatch_groups": 8, "replay": 0})
    c.critic.update({"learning_rate": 1e-5, "minibatch_rows": 64})
    c.discriminator.update({"learning_rate": 1e-5, "minibatch_episodes": 16})
    c.policy.update({"learning_rate": 5e-7, "warmup_updates": 0, "minibatch_rows": 64})
    c.train.update({"env_steps": 200 * 16 * 8 * 15, "chunk_rows": 8})
    c.eval.update({"episodes": 128, "every": 5, "final_episodes": min(c.eval.final_episodes, 512), "prm_as_policy_every": 0})
