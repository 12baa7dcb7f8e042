"""One job in several processes: which process writes, how processes agree, and how host data gets from one process to all.

Every process runs the same program on its own devices (`jax.distributed`, multi-controller). With a single process, every function
here returns at once without communicating. To start a job, start one copy of the same command for each process, all with the same
workdir:

* under SLURM (`srun`), and on TPU slices that list their hosts in `TPU_WORKER_HOSTNAMES`, no variables need to be set;
* `STEPREWARD_PROCESSES=auto` lets jax find the cluster, as on Cloud TPU virtual machines;
* otherwise set `STEPREWARD_COORDINATOR=host:port` (of process 0), `STEPREWARD_PROCESSES=8` and `STEPREWARD_PROCESS_ID=0`.

After a rollout, every process does the same work on the host from the same data, and process 0 alone writes files. An error that
occurs in all processes ends them all with its one-line message. If one process dies, or raises an unexpected error, it ends at
once. The others end when a collective with it fails, or at most 100 seconds later when its heartbeat is missed. The same commands
then resume the run from its last checkpoint.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from stepreward.errors import UserError

T = TypeVar("T")

_COORDINATOR, _PROCESSES, _PROCESS_ID = "STEPREWARD_COORDINATOR", "STEPREWARD_PROCESSES", "STEPREWARD_PROCESS_ID"
_PIECE = 1 << 22  # bytes gathered at a time; each device holds this many from every process


# --- Start ---


def initialize(environment: dict[str, str] | None = None) -> None:
    """Joins the job that the environment variables describe; does nothing in a job of one process, or if called again.

    Call it before anything uses a device.

    Raises:
      UserError: if the variables are inconsistent, or the other processes cannot be reached.
    """
    arguments = job_of(os.environ if environment is None else environment)
    if arguments is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if jax.config.jax_platforms == "cpu":
        share_cpu()
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"this process could not join the job's other processes ({reason}): check the variables described in docs/processes.md."
        ) from error
    sys.excepthook = _leave
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax's handler only records the signal; the runner installs its own


def share_cpu() -> None:
    """Lets several devices of one CPU, or of several processes, run programs with collectives. Call it before anything uses a device."""
    import jax

    # A collective blocks a thread of a pool that has one thread a core or a device, and a device can wait in several at once: with too few threads,
    # all would wait for ever. Without asynchronous dispatch, all devices start their collectives in the same order.
    os.environ.setdefault("NPROC", str(max(64, os.cpu_count() or 1)))
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def job_of(environment: dict[str, str]) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`, or None for a job of one process.

    Raises:
      UserError: if a variable is missing or is not a valid number.
    """
    given = {name: environment.get(name, "") for name in (_COORDINATOR, _PROCESSES, _PROCESS_ID)}
    if given[_PROCESSES] == "auto":
        return {}
    if any(given.values()):
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise UserError(f"a job of several processes needs the variables {', '.join(given)}; not set: {', '.join(missing)}.")
        for name in (_PROCESSES, _PROCESS_ID):
            if not given[name].isdigit():
                raise UserError(f"{name}={given[name]!r} must be a whole number.")
        processes, index = int(given[_PROCESSES]), int(given[_PROCESS_ID])
        if not index < processes:
            raise UserError(f"{_PROCESS_ID}={index} must be less than {_PROCESSES}={processes}.")
        if processes == 1:
            return None
        # Detection is off so that another launcher's variables do not override the ones given.
        return {
            "coordinator_address": given[_COORDINATOR],
            "num_processes": processes,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return {} if tasks.isdigit() and int(tasks) > 1 or len(hosts) > 1 else None


def _leave(kind, error, trace) -> None:
    """Ends this process at once after an uncaught error; at a normal exit it would wait for the others, and they for it."""
    traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


# --- Who ---


def count() -> int:
    """The number of processes."""
    import jax

    return jax.process_count()


def index() -> int:
    """The index of this process, from 0."""
    import jax

    return jax.process_index()


def is_writer() -> bool:
    """Whether this process writes the job's files and prints its output."""
    return index() == 0


def share(items: int) -> range:
    """The range of `items` items that belongs to this process; the processes' ranges are contiguous and differ in size by at most 1."""
    mine = np.array_split(np.arange(items), count())[index()]
    return range(int(mine[0]), int(mine[-1]) + 1) if len(mine) else range(0)


# --- What all agree on ---


def barrier(name: str) -> None:
    """Waits until every process has called it."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree_max(values) -> np.ndarray:
    """The element-wise maximum over all processes.

    Args:
      values: an integer, or an array of integers below 2³¹ with the same shape in all processes.
    """
    values = np.asarray(values, np.int32)
    return values if count() == 1 else _gather(values).max(axis=0)


def gather_objects(value: T) -> list[T]:
    """Returns the values of all processes in their order, in every process. Values are pickled, so they must be our own plain data."""
    if count() == 1:
        return [value]
    payload = np.frombuffer(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL), np.uint8)
    sizes = _gather(np.array([len(payload)], np.int32))[:, 0]
    pieces = []
    for first in range(0, int(sizes.max()), _PIECE):
        left = min(_PIECE, int(sizes.max()) - first)
        padded = np.zeros(1 << max(10, (left - 1).bit_length()), np.uint8)  # few sizes mean few compilations
        mine = payload[first : first + _PIECE]
        padded[: len(mine)] = mine
        pieces.append(_gather(padded)[:, :left])
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(np.concatenate(pieces, axis=1), sizes)]


def on_writer(function: Callable[[], T]) -> T:
    """Runs `function` in the writer alone; every process returns its result or raises its error.

    Decisions that depend on files are made this way, because another process may not see a file yet that was just written.
    """
    if count() == 1:
        return function()
    return _same_end(function if is_writer() else lambda: None)[0]


def together(function: Callable[[], T]) -> T:
    """Runs `function`, which must not use collectives, in every process; if it raises in one, all processes raise."""
    if count() == 1:
        return function()
    return _same_end(function, tell=False)[index()]


def check_same(value: dict[str, Any], what: str) -> None:
    """Raises a UserError in every process if their plain values differ; the message names the first difference."""
    given = gather_objects(value)
    for number, other in enumerate(given):
        for key in sorted(set(given[0]) | set(other)):
            if given[0].get(key) != other.get(key):
                raise UserError(
                    f"{what} differs between processes: {key} = {given[0].get(key)!r} in process 0, but {other.get(key)!r} in process "
                    f"{number}; start every process with the same command."
                )


def _same_end(function, tell: bool = True) -> list:
    result, error = None, None
    try:
        result = function()
    except Exception as caught:
        error = caught
    ends = gather_objects((result if tell else None, _portable(error)))
    if error is not None:
        raise error
    raised = [e for _, e in ends if e is not None]
    if raised:
        raise raised[0]
    return [r for r, _ in ends] if tell else [result] * len(ends)


def _portable(error: Exception | None) -> Exception | None:
    """The error in a form that can be pickled: of its own type if that survives pickling, else a UserError."""
    try:
        again = pickle.loads(pickle.dumps(error))
        return error if str(again) == str(error) else UserError(str(error))
    except Exception:
        return UserError(f"{type(error).__name__}: {error}")


def _gather(values: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(values)


# --- Arrays ---


def to_host(x) -> np.ndarray:
    """The whole array on the host, in every process, wherever its parts are."""
    if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


def place(x, sharding):
    """Shards an array that every process holds whole, or that is already spread over the devices of all processes."""
    import jax

    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x if x.sharding == sharding else _layout(sharding)(x)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def place_rows(x, sharding):
    """Makes one array of rows from the blocks `[B / processes, …]` of all processes; numbers or PRNG keys."""
    import jax

    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = place_rows(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))


def local_rows(x) -> np.ndarray:
    """This process's block of rows of an array that `place_rows` made."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def all_rows(chosen: np.ndarray, rows: int) -> np.ndarray:
    """Gathers the rows that each process chose among its own `rows` rows, as indices into the rows of all processes."""
    if count() == 1:
        return chosen
    return _gather(np.asarray(chosen + index() * rows, np.int32)).reshape(-1)


def check_blocks(owner: np.ndarray, processes: int) -> None:
    """Checks that the mesh gives each process one block of rows, in the order of the processes and of equal size.

    Args:
      owner: int `[data, fsdp, tensor]`, the process of each device of the mesh.
      processes: the number of processes.

    Raises:
      ValueError: if the processes have different numbers of devices, or a tensor group has devices of several processes.
    """
    shape = "mesh.data × mesh.fsdp × mesh.tensor = " + " × ".join(map(str, owner.shape))
    if (owner != owner[..., :1]).any():
        raise ValueError(
            f"{shape}: a tensor group has devices of several processes; choose a mesh.tensor that divides the devices of one process."
        )
    blocks = owner[..., 0].reshape(-1)
    per_process = -(-len(blocks) // processes)
    if not np.array_equal(blocks, np.arange(len(blocks)) // per_process) or len(blocks) % processes:
        devices = np.bincount(owner.reshape(-1), minlength=processes).tolist()
        raise ValueError(f"{shape} uses {devices} devices of the {processes} processes: every process must have the same number.")


@functools.cache
def _layout(sharding):
    import jax

    return jax.jit(lambda x: x, out_shardings=sharding)
