#!/usr/bin/env bash
# Installs the project on a TPU VM or a GPU machine, into ~/stepreward-venv (TPU VMs come with a Python that is too old):
#
#     bash launch/cloud/install.sh tpu        # or cuda, cuda13
set -euo pipefail

extra="${1:?name the accelerator: tpu, cuda or cuda13}"
venv="$HOME/stepreward-venv"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -x "$venv/bin/python" ] || uv venv --python 3.12 "$venv"
uv pip install --quiet --python "$venv/bin/python" -e ".[$extra,gcs]"
"$venv/bin/python" -c "import jax; print(jax.device_count(), jax.devices()[0].device_kind)"
