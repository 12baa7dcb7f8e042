"""The files of launch/cloud: they parse, agree with each other, and refer only to existing files and options."""

import importlib.util
import re
import shlex
import subprocess

import pytest

from stepreward.config import leaves, parse_command_line

FILES = ("README.md", "install.sh", "xpk.sh", "Dockerfile", "workdir.yaml", "jobset.yaml", "sky.yaml")


@pytest.fixture(scope="module")
def folder(root):
    return root / "launch" / "cloud"


@pytest.fixture(scope="module")
def train(root):
    """launch/train.py as a module."""
    spec = importlib.util.spec_from_file_location("launch_train", root / "launch" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load(folder):
    """`load(name)`: a file of YAML."""
    yaml = pytest.importorskip("yaml")
    return lambda name: yaml.safe_load((folder / name).read_text(encoding="utf-8"))


def commands(text):
    """The arguments of every `launch/train.py` in a text, in shell or as a YAML list."""
    text = re.sub(r"\\\n\s*", "", text)
    text = re.sub(r"\n\s*- (?=--)", " ", text)
    found = re.findall(r"python\s+(?:- )?launch/train\.py((?: +--?[^\s\"`]+)+)", text)
    return [shlex.split(arguments) for arguments in found]


def scripts(folder):
    """Everything that a shell is to run: (name, text)."""
    for name in ("install.sh", "xpk.sh"):
        yield name, (folder / name).read_text(encoding="utf-8")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for index, block in enumerate(re.findall(r"^```\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)):
        yield f"README.md, block {index}", block


def test_the_folder_holds_these_files(folder):
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_shell_parses(folder):
    for name, text in scripts(folder):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_every_training_command_is_one_that_train_takes(root, folder, train, monkeypatch):
    monkeypatch.chdir(root)
    seen = {}
    for name in FILES:
        for arguments in commands((folder / name).read_text(encoding="utf-8").replace("$CHIPS", "8")):
            if arguments != ["--help"] and "--config=…" not in arguments:
                config, options = parse_command_line(arguments, extra=(train.WORKDIR, train.QUIET, train.STAGE))
                values = leaves(config)
                assert options.workdir and values["model.path"].endswith("Qwen2.5-0.5B-Instruct")
                assert values["train.chunk_rows"] % values["mesh.fsdp"] == values["rollout.max_rows"] % values["mesh.fsdp"] == 0
                seen[name] = seen.get(name, 0) + 1
    assert seen == {"README.md": 4, "xpk.sh": 1, "jobset.yaml": 1, "sky.yaml": 1}


def test_paths_and_extras_are_there(root, folder):
    setup = (root / "setup.py").read_text(encoding="utf-8")
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        for path in re.findall(r"\b(?:launch|configs|stepreward|envs)/[\w./]*\w", text):
            assert (root / path).exists(), f"{name} names {path}"
        extras = re.findall(r"EXTRA[=:] ?(\w+)", text) + re.findall(r"install\.sh (\w+)", text)
        extras += [extra for group in re.findall(r"\.\[([\w,]+)\]", text) for extra in group.split(",")]
        for extra in extras:
            assert f'"{extra}": ' in setup, f"{name} names the extra {extra}"
        for link in re.findall(r"\]\(([\w./]+)\)", text):
            assert (folder / link).is_file(), f"{name} links to {link}"
    for source in re.findall(r"^COPY (.*) \S+$", (folder / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE):
        assert all((root / path).exists() for path in source.split())


def test_variables_are_those_of_the_library(root, folder):
    library = root / "stepreward" / "processes.py"
    if not library.is_file():
        pytest.skip("jobs of several processes are not there")
    named = {v for name in FILES for v in re.findall(r"STEPREWARD_\w+", (folder / name).read_text(encoding="utf-8"))}
    assert named and named <= set(re.findall(r"STEPREWARD_\w+", library.read_text(encoding="utf-8")))


def test_the_jobset_fits_its_slice_and_its_workdir(load):
    jobset, claim = load("jobset.yaml"), load("workdir.yaml")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["parallelism"] == spec["completions"] == x * y // container["resources"]["limits"]["google.com/tpu"] == 4
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = container["volumeMounts"]
    assert any(a.startswith(f"--workdir={mount['mountPath']}/") for a in container["command"])
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [143] and pod["restartPolicy"] == "Never"


def test_skypilot_s_workdir_outlives_the_machine(load):
    task = load("sky.yaml")
    (mount,) = task["file_mounts"]
    assert f"--workdir={mount}/" in task["run"] and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    for text in (task["setup"], task["run"]):
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        assert set(re.findall(r"\$\{?(\w+)", text)) <= set(task["envs"])
