"""TPU chips, and TPU slices as XLA's TPU compiler describes them on a machine without a TPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys

from stepreward.envs.extras import install_command
from stepreward.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as jax sees it.

    Attributes:
      flops: peak bfloat16 operations a second.
      hbm: bytes of memory that a program can use.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second that all links of the device receive together.
      accelerator: the accelerator type of its slices, with "{}" for the size.
      cores: how much each chip adds to that size.
      host: shape of the chips of one host, `(x, y, z)`.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float
    accelerator: str
    cores: int
    host: tuple[int, int, int] = (2, 2, 1)


# From the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of Google Cloud's documentation (cloud.google.com/tpu/docs): peak
# bf16 compute, HBM bandwidth, and one-way interconnect bandwidth of a chip (half of the bidirectional figure). A TPU7x chip, and a v4
# chip as described here, is two devices with half of everything each. The memory is what XLA lets a program use, a little less than
# the chip has.
CHIPS = {
    "v4": Chip(275e12 / 2, 31.0 / 2 * GIB, 1.2e12 / 2, 300e9 / 2, "v4-{}", 2),
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, "v5litepod-{}", 1),
    "v5p": Chip(459e12, 95.74 * GIB, 2.765e12, 600e9, "v5p-{}", 2),
    "v6e": Chip(918e12, 31.25 * GIB, 1.6e12, 400e9, "v6e-{}", 1),
    "tpu7x": Chip(2307e12 / 2, 94.75 * GIB, 7.38e12 / 2, 600e9 / 2, "tpu7x-{}", 2),
}
EXAMPLES = "v5e:1x1, v5e:2x2, v5e:4x4, v6e:4x4, v5p:2x2x2, v4:2x2x4, tpu7x:2x2x2"


def parse(topology: str) -> tuple[str, Chip, tuple[int, ...]]:
    """Parses the name of a slice such as "v5e:4x4" into the chip's name, the chip and the slice's shape.

    Raises:
      UserError: if the text does not name a slice of a known chip.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology or "")
    if not found or found[1] not in CHIPS:
        raise UserError(f"--topology={topology!r} does not name a TPU slice: give CHIP:SHAPE, such as {EXAMPLES}.")
    return found[1], CHIPS[found[1]], tuple(int(n) for n in found[2].split("x"))


def devices(topology: str) -> list:
    """The devices of a slice, to compile programs for. Call it before jax is imported, because it sets environment variables for jax.

    Raises:
      UserError: if there is no such slice, or the TPU compiler is not installed.
    """
    name, chip, shape = parse(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"XLA's TPU compiler is not installed (it needs no TPU): {install_command('tpu-compile')}, or the libtpu that jax[tpu] requires."
        )
    assert "jax" not in sys.modules or "JAX_PLATFORMS" in os.environ, "jax was imported before its environment variables were set"
    chips = math.prod(shape)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": chip.accelerator.format(chips * chip.cores),
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # several processes may compile at once, because none uses a chip
    }
    from jax.experimental import topologies

    more = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
    except Exception as error:
        why = str(error).split("\n")[0]
        raise UserError(f"--topology={topology!r}: XLA does not know this slice ({why}). It knows, for example, {EXAMPLES}.") from error
    return list(found)
