#!/usr/bin/env bash
# The same slice with XPK, which also creates the cluster (pip install xpk; needs gcloud and kubectl):
#
#     PROJECT=… ZONE=… CLUSTER=… IMAGE=… BUCKET=… bash launch/cloud/xpk.sh cluster      # once
#     PROJECT=… ZONE=… CLUSTER=… IMAGE=… BUCKET=… bash launch/cloud/xpk.sh istar        # a run; the same name resumes it
#
# XPK restarts a job that exits with a code from 127 to 255, and so a run that exits with 143 after SIGTERM.
set -euo pipefail

name="${1:?give the word cluster, or the name of a run}"
type=v5litepod-16  # 16 chips: mesh.fsdp below
where=(--project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER")

if [ "$name" = cluster ]; then
    xpk cluster create "${where[@]}" --tpu-type="$type" --num-slices=1 --spot --enable-gcpfilestore-csi-driver
    xpk storage create runs "${where[@]}" --type=gcpfilestore --size=1024 --tier=BASIC_HDD --vol=default \
        --mount-point=/runs --auto-mount=true --readonly=false
    exit
fi
xpk workload create "${where[@]}" --workload="$name" --tpu-type="$type" --docker-image="$IMAGE" --max-restarts=50 \
    --command="cd /opt/stepreward && exec python launch/train.py --config=configs/istar_sokoban.py:qwen2.5-0.5b \
        --workdir=/runs/$name --config.checkpoint.folder=gs://$BUCKET/$name --config.checkpoint.every=1 \
        --config.model.download=true --config.mesh.fsdp=16 --config.train.chunk_rows=16"
