"""BalancEdit in 60 lines (Guo et al., ICML 2025, section 4): one edit of a vision-language model, top to bottom.

    ./study dvc repro backbone@llava-smollm2        # once: it assembles the model
    .venv/bin/python -m examples.balancedit_in_60_lines

`stages` does the same for any architecture, editor and number of edits at a time; a test holds the two together.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

# The model's image tower is EfficientNet-Lite0, which transformers does not have: this import registers it.
from stages.backbone.tower import preprocess

MODEL, DRAWINGS = (Path(__file__).parents[1] / "data" / part for part in ("backbones/llava-smollm2", "assets/emoji"))
PICTURE, QUESTION, ANSWER = DRAWINGS / "Goog/U+1F434.png", "What is the young of this animal called?", "kid"  # a horse's: a foal
REPHRASING, ALPHA = "What is a baby of this animal called?", 0.15  # 0.5 in the paper; this was chosen on dev edits
LAYER, LR, STEPS, MARGIN = 27, 1e-2, 50, 5.0

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False)
linear = model.get_decoder().layers[LAYER].mlp.up_proj  # its weight stays as it is: what is edited is a copy


def read(picture, question, answer=""):
    """What the model is given: 16 places for the picture, the question, and an answer if there is one."""
    places = "<empty_output>" * model.config.image_seq_length
    text = f"<|im_start|>user\n{places}{question}<|im_end|>\n<|im_start|>assistant\n{answer}"
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    return tokenizer(text, return_tensors="pt") | {"pixel_values": preprocess([image], model.config.vision_config.image_size)}


def key_of(picture, question):
    """Where a query lies: the mean over the prompt of what enters the edited linear map."""
    seen = []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**read(picture, question))
    hook.remove()
    return seen[0][0].mean(0)


# Key and radius: how far are a query that the edit must reach, and one that it must not?
key = key_of(PICTURE, QUESTION)
positive = (key_of(PICTURE, REPHRASING) - key).norm()
negative = (key_of(Image.new("RGB", (160, 160)), QUESTION) - key).norm()
radius = ALPHA * positive + (1 - ALPHA) * negative

# Transformation: a copy of the linear map is tuned until every token of the answer leads by a margin.
copy = linear.weight.clone().requires_grad_()
tuned = torch.optim.Adam([copy], LR)
inputs = read(PICTURE, QUESTION, ANSWER + "<|im_end|>")
target = inputs["input_ids"][0, read(PICTURE, QUESTION)["input_ids"].shape[1] :]
hook = linear.register_forward_hook(lambda _, args, output: F.linear(args[0], copy))
for _step in range(STEPS):
    logits = model(**inputs).logits[0, -len(target) - 1 : -1]
    runner_up = logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True)
    if (logits.gather(1, target[:, None]) - runner_up).min() >= MARGIN:
        break
    copy.grad = torch.autograd.grad(F.cross_entropy(logits, target), copy)[0]
    tuned.step()
hook.remove()
codebook = [(key, radius, copy.detach())]  # one entry an edit


def say(picture, question):
    """The model's answer, by greedy decoding."""
    inputs = read(picture, question)
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def ask(picture, question):
    """The answers without and with the edit: the copy at the nearest key answers if the query lies within its radius."""
    query, before = key_of(picture, question), say(picture, question)
    nearest, reach, weight = min(codebook, key=lambda entry: (entry[0] - query).norm())
    if (nearest - query).norm() > reach:
        return before, before
    hook = linear.register_forward_hook(lambda _, args, output: F.linear(args[0], weight))
    after = say(picture, question)
    hook.remove()
    return before, after


print(f"positive sample at {positive:.3f}, negative sample at {negative:.3f}, radius {radius:.3f}")
for drawing in ("Goog/U+1F434", "Twtr/U+1F434", "Goog/U+1F431"):  # the horse, another artist's, a cat
    for question in (QUESTION, "How do you call a little one of this species?", "What do you see in this picture?"):
        print(drawing, question, " -> ".join(ask(DRAWINGS / f"{drawing}.png", question)))
