"""Teach the tower's late blocks to tell drawn things apart whoever drew them.

Cross-entropy over the concepts' names on five artists' views, with statistics of the early states mixed between pictures of a
batch (MixStyle, Zhou et al., ICLR 2021, section 3.1), so that an artist's style says little. The classifier is thrown away.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from stages.backbone.tower import EfficientNetLiteTower
from stages.params import write_atomically
from stages.settings import VisionTower

MIXED = 0.5  # share of batches whose statistics are mixed
CONCENTRATION = 0.3  # of the Beta distribution that the mixing weight is drawn from
SHIFT = 2  # cells by which early states move, at most


def tune(tower: EfficientNetLiteTower, early: torch.Tensor, names: Sequence[str], settings: VisionTower, seed: int) -> None:
    """Tune `tower` in place on an `early_bank` whose concepts have these names."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    distinct = sorted(set(names))
    labels = torch.tensor([distinct.index(name) for name in names])
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(tower.config.hidden_size, len(distinct)))
    late = late_parameters(tower)
    groups = [{"params": late, "lr": settings.lr}, {"params": classifier.parameters(), "lr": 4 * settings.lr}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.02)
    highest = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, highest, total_steps=settings.steps, pct_start=0.1)
    vendors, views, concepts = early.shape[:3]
    for _ in (bar := tqdm(range(settings.steps), desc="tower", mininterval=10)):
        picked = [torch.from_numpy(rng.integers(n, size=settings.batch)) for n in (vendors, views, concepts)]
        states = moved(mixed(early[picked[0], picked[1], picked[2]].float(), rng), rng)
        logits = classifier(tower.late(states).mean(1))
        loss = F.cross_entropy(logits, labels[picked[2]], label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        right = float((logits.argmax(1) == labels[picked[2]]).float().mean())
        bar.set_postfix(loss=f"{loss.item():.2f}", right=f"{right:.2f}", refresh=False)
    tower.requires_grad_(False)


def late_parameters(tower: EfficientNetLiteTower) -> list[nn.Parameter]:
    """The late blocks' weights; running statistics stay as ImageNet left them."""
    return [p.requires_grad_(True) for module in tower.late_modules() for p in module.parameters()]


def mixed(states: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """`states` [B, C, H, W] with their channel means and deviations mixed between pictures (MixStyle), or as they are."""
    if rng.random() > MIXED:
        return states
    mean, deviation = states.mean((2, 3), keepdim=True), states.std((2, 3), keepdim=True) + 1e-6
    other = torch.from_numpy(rng.permutation(len(states)))
    share = torch.from_numpy(rng.beta(CONCENTRATION, CONCENTRATION, len(states))).float()[:, None, None, None]
    new_mean, new_deviation = (share * own + (1 - share) * own[other] for own in (mean, deviation))
    return (states - mean) / deviation * new_deviation + new_mean


def moved(states: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A batch [B, C, H, W] shifted by up to SHIFT cells and, half of the time, mirrored."""
    if rng.random() < 0.5:
        states = states.flip(-1)
    height, width = states.shape[-2:]
    top, left = rng.integers(2 * SHIFT + 1, size=2)
    return F.pad(states, [SHIFT] * 4, mode="replicate")[..., top : top + height, left : left + width]


def late_state(tower: EfficientNetLiteTower) -> dict[str, torch.Tensor]:
    """The tensors that `tune` changed, by their names in the tower."""
    tuned = {id(p) for module in tower.late_modules() for p in module.parameters()}
    return {name: p.detach().to(torch.bfloat16).contiguous() for name, p in tower.named_parameters() if id(p) in tuned}


def save(path: Path, tower: EfficientNetLiteTower) -> None:
    """Write the tuned tensors in bfloat16, whole or not at all."""
    with write_atomically(path) as temporary:
        save_file(late_state(tower), temporary)


def apply(tower: EfficientNetLiteTower, path: Path) -> None:
    """Put tuned tensors into a tower that holds ImageNet's."""
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    unknown = tower.load_state_dict(state, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{path}: {unknown[0]} is not a tensor of the tower")
