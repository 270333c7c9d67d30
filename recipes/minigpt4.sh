#!/bin/sh
# The paper's MiniGPT-4 over Vicuna-7B: up_proj of the last decoder layer (31), on the embedded dataset.
# Its pieces are not on the hub as one model. Fetch them once:
#   BLIP-2:     .venv/bin/hf download Salesforce/blip2-flan-t5-xxl --local-dir models/blip2-flan-t5-xxl
#   Vicuna-7B:  version 0, from LLaMA's weights and lmsys/vicuna-7b-delta-v0, in models/vicuna-7b
#   projection: prerained_minigpt4_7b.pth, linked from the README of Vision-CAIR/MiniGPT-4, in models
# Hardware, estimated, not measured: 40 GB of memory to put them together; a GPU with 40 GB for the edits; 80 GB of disk.
set -eu
cd "$(dirname "$0")/.."
if [ ! -e models/minigpt4/config.json ]; then
    ./study setup
    .venv/bin/python -m stages.backbone.minigpt4 --blip2 models/blip2-flan-t5-xxl --vicuna models/vicuna-7b \
        --projection models/prerained_minigpt4_7b.pth --out models/minigpt4
fi
./study dvc exp run \
    -S '++backbones.minigpt4={checkpoint: ./models/minigpt4, dtype: bfloat16, device_map: auto}' \
    -S 'edited=[llava-smollm2,blip2-smollm2,minigpt4]' "$@"
