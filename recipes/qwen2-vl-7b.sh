#!/bin/sh
# Qwen2-VL-7B-Instruct: up_proj of the last decoder layer (27), on the embedded dataset.
# Hardware, estimated, not measured: a GPU with 40 GB; 17 GB of disk for the download.
set -eu
cd "$(dirname "$0")/.."
HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-0}" ./study dvc exp run \
    -S '++backbones.qwen2-vl-7b={checkpoint: Qwen/Qwen2-VL-7B-Instruct, revision: main, dtype: bfloat16, device_map: auto}' \
    -S 'edited=[llava-smollm2,blip2-smollm2,qwen2-vl-7b]' "$@"
