"""Programs compiled for an absent TPU slice: the list of programs, the parsed figures, and their sums."""

import importlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import stepreward.training
from stepreward import parallel
from stepreward.errors import UserError
from stepreward.programs import Component, Program
from stepreward.tpu import hlo, plan, slices, table
from stepreward.training.train import Runner

GIB = 2**30
HLO = """HloModule jit_step, entry_computation_layout={(f32[8,16]{1,0})->f32[8,16]{1,0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%counted (p: (s32[], f32[8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %p = (s32[], f32[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

%until_done (q: (s32[], f32[8,16])) -> pred[] {
  %q = (s32[], f32[8,16]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] get-tuple-element(%q), index=0
  ROOT %going = pred[] compare(%j, %end), direction=LT
}

%gathered (w: f32[4,16]) -> f32[16,16] {
  %w = f32[4,16]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[16,16]{1,0} all-gather(%w), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}

%layer (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[], f32[8,16]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x.1 = f32[8,16]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %part = f32[4,16]{1,0} constant({...})
  %start = f32[16,16]{1,0:T(8,128)S(1)} fusion(%part), kind=kCustom, calls=%gathered
  %again = f32[16,16]{1,0:T(8,128)S(1)} fusion(%part), kind=kCustom, calls=%gathered
  %product = f32[8,16]{1,0:T(8,128)} dot(%x.1, %start), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], f32[8,16]) tuple(%n, %product)
}

%chunk (t: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %t = (s32[], f32[8,16]) parameter(0)
  %inner = (s32[], f32[8,16]) while(%t), condition=%counted, body=%layer
  %m = s32[] get-tuple-element(%inner), index=0
  %out = f32[8,16]{1,0} get-tuple-element(%inner), index=1
  %all-reduce.2 = f32[8,16]{1,0} all-reduce(%out), channel_id=2, replica_groups=mesh['a'=2,'b'=2] {'b'}, to_apply=%add
  ROOT %done = (s32[], f32[8,16]) tuple(%m, %all-reduce.2)
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %state = (s32[], f32[8,16]) tuple(%zero, %a)
  %loop = (s32[], f32[8,16]) while(%state), condition=%until_done, body=%chunk
  %exchanged = f32[8,16]{1,0} all-to-all(%a), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_multiply_what_is_in_them():
    cost = hlo.read(HLO, trips=3)
    layers = 3 * 24
    assert cost.guessed == ["loop"]
    assert cost.flops == layers * 2 * 8 * 16 * 16
    assert cost.collectives == {
        "all-gather": (layers, layers * 16 * 16 * 4 * 3 / 4),  # once a layer, though two fusions show it
        "all-reduce": (3, 3 * 2 * 8 * 16 * 4 / 2),
        "all-to-all": (1, 8 * 16 * 4 * 3 / 4),
    }
    # Of a layer: the part that two fusions read, and the product's input and output; what is gathered stays in the chip's memory.
    assert cost.bytes == layers * 4 * (2 * 4 * 16 + 2 * 8 * 16) + 3 * 4 * 2 * 8 * 16 + 4 * 2 * 8 * 16


def test_products_that_are_written_as_convolutions():
    def flops(left, kernel, out, rest):
        lines = [
            f"  %l = bf16[{left}] parameter(0)",
            f"  %k = bf16[{kernel}] parameter(1)",
            f"  ROOT %c = bf16[{out}] convolution(%l, %k), {rest}",
        ]
        text = "ENTRY %main (l: bf16[1]) -> bf16[1] {\n" + "\n".join(lines) + "\n}\n"
        return hlo.read(text).flops

    assert flops("3,5", "5,7", "3,7", "dim_labels=bf_io->bf") == 2 * 3 * 5 * 7
    # Rows and heads of attention as dilated windows: each output position meets one real tap of each.
    window = "window={size=8x2 stride=7x1 lhs_dilate=8x2}, dim_labels=01bf_01oi->01bf"
    assert flops("8,2,7,64", "8,2,15,64", "8,2,7,15", window) == 2 * 8 * 2 * 7 * 15 * 64
    # Heads as a window over one position of the input.
    window = "window={size=14 pad=13_13 rhs_reversal=1}, dim_labels=bf0_0oi->b0f"
    assert flops("8,96,1", "14,64,96", "8,14,64", window) == 2 * 8 * 96 * 14 * 64


def test_a_slice_of_an_array_moves_the_slice():
    text = """%take (s: f32[24,8,8], i: s32[]) -> f32[1,8,8] {
  %s = f32[24,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %one = f32[1,8,8]{2,1,0} dynamic-slice(%s, %i), dynamic_slice_sizes={1,8,8}
}

%put (c: f32[24,8,8], x: f32[1,8,8], j: s32[]) -> f32[24,8,8] {
  %c = f32[24,8,8]{2,1,0} parameter(0)
  %x = f32[1,8,8]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %new = f32[24,8,8]{2,1,0} dynamic-update-slice(%c, %x, %j)
}

ENTRY %main (a: f32[24,8,8], n: s32[]) -> f32[24,8,8] {
  %a = f32[24,8,8]{2,1,0} parameter(0)
  %n = s32[]{:S(6)} parameter(1)
  %taken = f32[1,8,8]{2,1,0} fusion(%a, %n), kind=kLoop, calls=%take
  ROOT %put.1 = f32[24,8,8]{2,1,0} fusion(%a, %taken, %n), kind=kLoop, calls=%put
}
"""
    assert hlo.read(text).bytes == 4 * 64 * (2 + 3)  # read, written; read, and the place of it read and written


def test_times_are_quotients_and_the_longest_counts():
    chip = slices.CHIPS["v5e"]
    program = Program("policy/update", None, (), times=4, kernel_flops=16 * 197e12)
    cost = hlo.Cost(flops=197e12, bytes=819e9 / 2, collectives={"all-gather": (3, 200e9), "all-reduce": (1, 400e9)})
    estimate = plan.Estimate(program, {"policy": 2.0 * GIB, "prm": 3.0 * GIB}, 1.0 * GIB, 4.0 * GIB, cost)
    assert estimate.seconds(chip, 16) == pytest.approx({"compute": 2, "memory": 0.5, "links": 3})
    assert estimate.resident == 10 * GIB and estimate.fits(chip)
    line = dict(zip(table.HEADER, table.row(estimate, chip, 16)))
    assert line["least time"] == "3 s" and line["bound by"] == "links" and line["resident"] == "10.00" and line["TFLOP"] == "394"
    said = table.summary([("train", estimate)], chip, 16)
    assert "10.00 of 15.75 GiB" in said and "policy 2.00, prm 3.00" in said and "at least 12 s: policy 12 s" in said
    more = plan.Estimate(program, {"policy": 12.0 * GIB}, 0.0, 4.0 * GIB, cost)
    assert not more.fits(chip) and more.fits(slices.CHIPS["v6e"])
    assert "Does not fit: policy/update" in table.summary([("train", estimate), ("train", more)], chip, 16)


@pytest.mark.parametrize("name", ["", "v5e", "v9:2x2", "v5e:2", "v5e:2x2x2x2"])
def test_a_slice_that_there_is_not_is_named(name):
    with pytest.raises(UserError, match="CHIP:SHAPE, such as v5e:1x1"):
        slices.parse(name)


def test_no_compiler_is_one_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tpu-compile"):
        slices.devices("v5e:2x2")


def test_all_chips_unless_the_mesh_says_otherwise():
    devices = list("abcdefghijklmnop")
    mesh = lambda **axes: plan.make_mesh(SimpleNamespace(mesh=SimpleNamespace(**({"data": 1, "fsdp": 1, "tensor": 1} | axes))), devices)
    assert tuple(mesh().shape.values()) == (1, 16, 1)
    assert tuple(mesh(tensor=4).shape.values()) == (1, 4, 4)
    assert tuple(mesh(data=-1, fsdp=4).shape.values()) == (4, 4, 1)
    for wrong in ({"fsdp": 8}, {"fsdp": 32}, {"data": -1, "fsdp": 3}):
        with pytest.raises(UserError, match="mesh.data × mesh.fsdp × mesh.tensor"):
            mesh(**wrong)


# --- What a run compiles is what is listed ---

# Jitted functions on arrays alone, without a model: they need next to nothing.
_SMALL = {
    "learner._credit", "auxiliaries.critic._value_mask", "auxiliaries.prm._loss", "auxiliaries.estimator._loss",
    "auxiliaries.estimator._contributions",
}  # fmt: skip


def _jitted() -> dict:
    """Every jitted function of the training modules by its name."""
    found = {}
    for info in pkgutil.walk_packages(stepreward.training.__path__, "stepreward.training."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if hasattr(value, "lower") and hasattr(value, "_cache_size") and value.__module__ == module.__name__:
                found[f"{info.name.removeprefix('stepreward.training.')}.{name}"] = value
    return found


def _zeros(x):
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    zeros = jnp.zeros(x.shape, x.dtype)
    return zeros if x.sharding is None else jax.device_put(zeros, x.sharding)


@pytest.fixture(scope="module")
def listed(micro_config, spa_config, tmp_path_factory):
    """Finished runs, then each of their programs as it is listed, called with zeros: the function, and how many more programs that
    compiled."""
    changes = {"eval.every": 100, "eval.episodes": 1, "eval.prm_as_policy_every": 0}
    istar = Runner(micro_config(changes), tmp_path_factory.mktemp("istar") / "run")
    spa = Runner(spa_config(), tmp_path_factory.mktemp("spa") / "run")  # a new one, since programs are forgotten between test files
    istar.run()
    spa.run()
    found = {}
    for runner in (istar, spa):
        for stage, program, _ in plan.programs(runner.c, runner.mesh, vocabulary=runner.parts.model_config.vocab_size):
            if not program.name.startswith("rollout"):
                before = program.function._cache_size()
                program.function(*jax.tree.map(_zeros, program.args), **program.kwargs)
                found[f"{runner.method.name} {stage} {program.name}"] = program.function, program.function._cache_size() - before
    return found


def test_programs_are_those_that_runs_compile(listed):
    assert {name: new for name, (_, new) in listed.items() if new} == {}


def test_every_jitted_step_of_training_is_listed(listed):
    functions = [function for function, _ in listed.values()]
    assert {name for name, function in _jitted().items() if function not in functions} == _SMALL


@pytest.mark.parametrize("held_out, update, measure", [(0.3, 6, 3), (0.0, 8, 8)])
def test_how_often_each_step_runs(spa_config, held_out, update, measure):
    """Of 10 explored tasks 3 are held out; 3 episodes a task; 4 episodes a mini-batch."""
    exploration = {"exploration.tasks": 10, "exploration.rollouts": 3, "estimator.minibatch_episodes": 4}
    rollout = {"rollout.groups": 3, "rollout.group_size": 3, "estimator.refresh_every": 2}
    critic = {"critic.backbone": "separate", "critic.minibatch_rows": 4, "critic.epochs": 3}
    policy = {"policy.minibatch_rows": 2, "policy.epochs": 2, "train.chunk_rows": 1, "rollout.context": "episode"}
    config = spa_config({"estimator.held_out": held_out, **exploration, **rollout, **critic, **policy})
    found = {(stage, p.name): p.times for stage, p, _ in plan.programs(config, parallel.make_mesh(1, 1, 1))}
    assert found["estimator", "estimator/update"] == update and found["estimator", "estimator/measure"] == measure
    assert found["train", "estimator/update"] == 3  # 9 episodes
    assert found["train", "critic/update"] == 3 * 3 and found["train", "policy/update"] == 2 * 5  # 9 rows
    assert found["train", "estimator/estimate"] == found["train", "critic/values"] == 1


@pytest.mark.parametrize("groups, replay, times", [(0, 0, 2), (2, 0, 4), (2, 1, 8)])
def test_how_often_the_prm_learns(micro_config, groups, replay, times):
    config = micro_config({"rollout.groups": 3, "prm.epochs": 2, "prm.minibatch_groups": groups, "prm.replay": replay})
    found = {p.name: p.times for stage, p, _ in plan.programs(config, parallel.make_mesh(1, 1, 1)) if stage == "train"}
    assert found["prm/update"] == times and found["prm/score"] == 1


def test_a_component_must_say_what_it_compiles():
    class Forgetful(Component):
        pass

    with pytest.raises(TypeError, match="programs"):
        Forgetful()


def test_rollouts_that_branch_read_the_earlier_turns_again(micro_config):
    """In batches, as several hosts play, by a program of its own; on one host by that of prompts."""
    changes = {"credit.method": "vineppo", "rollout.context": "episode", "rollout.max_row_tokens": 200}
    mesh, found = parallel.make_mesh(1, 1, 1), {}
    for schedule in ("batch", "free"):
        listed = plan.programs(micro_config(changes | {"rollout.schedule": schedule}), mesh)
        found[schedule] = {p.name for _, p, _ in listed if p.name.startswith("rollout/")}
    assert {"rollout/turn", "rollout/extend"} <= found["batch"] and found["free"] >= {"rollout/read", "rollout/copy", "rollout/decode"}


def test_the_tables_of_the_page_are_commands_that_are_understood(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "experiments"))
    monkeypatch.syspath_prepend(str(root / "launch"))
    monkeypatch.chdir(root)
    import compile_tpu
    import tpu_page

    from stepreward.config import parse_command_line

    for one in tpu_page.TABLES.values():
        arguments = tpu_page.command(one).split()[2:]
        _, options = parse_command_line(arguments, extra=compile_tpu.OPTIONS, description="")
        slices.parse(options.topology)


# --- With XLA's TPU compiler ---

SCRIPT = """
import contextlib, dataclasses, io, json, sys
sys.path.insert(0, "launch")
import compile_tpu
from stepreward.tpu import slices

def run(*arguments):
    out = io.StringIO()
    sys.argv = ["compile_tpu.py", "--config=configs/istar_sokoban.py:micro", "--topology=v5e:2x2", *arguments]
    with contextlib.redirect_stdout(out):
        code = compile_tpu.main()
    return code, out.getvalue()

found = [run("--markdown", "--programs=policy/update,rollout/prepare"), run("--list")]
slices.CHIPS["v5e"] = dataclasses.replace(slices.CHIPS["v5e"], hbm=1000.0)
found.append(run("--programs=rollout/prepare"))
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the libtpu wheel, no TPU")
def test_a_run_is_compiled_for_a_slice(root):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (code, text), (_, names), (too_large, why) = json.loads(done.stdout.splitlines()[-1])
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert code == 0 and "Everything fits" in text and "data 1 × fsdp 4 × tensor 1" in text
    by_name = {line[0].strip("| "): dict(zip(table.HEADER, line)) for line in lines}
    assert [line.split(maxsplit=1)[1] for line in names.splitlines()[1:]] == [
        "policy/sft", "rollout/prepare", "rollout/read", "rollout/copy", "rollout/decode", "policy/update", "prm/score", "prm/update"
    ]  # fmt: skip
    assert set(by_name) == {"program", "policy/update", "rollout/prepare"}
    assert "gather" in by_name["policy/update"]["collectives"] and float(by_name["policy/update"]["TFLOP"]) > 0
    assert too_large == 1 and "Does not fit: rollout/prepare" in why


def test_rows_of_pictures_are_in_the_plan(root):
    """As the paper plays VisualSokoban: 18 × 18 patches a row for the policy, none for its PRM of text."""
    from stepreward.config import load_config_file
    from stepreward.models.vision import VisionInputs

    config = load_config_file(f"{root}/configs/istar_sokoban.py:paper")
    found = {p.name: p for stage, p, _ in plan.programs(config, parallel.make_mesh(1, 1, 1)) if stage == "train"}
    vision = found["policy/update"].args[1].vision
    assert vision.patches.shape[0] == 64 and vision.patches.shape[1] * vision.patches.shape[2] >= 18 * 18
    assert found["prm/update"].args[1].vision is None and found["prm/score"].args[1].vision is None
    assert any(isinstance(argument, VisionInputs) for argument in found["rollout/turn"].args)
