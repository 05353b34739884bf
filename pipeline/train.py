"""The one training loop, used for training, for fine-tuning after trimming and for quantisation-aware training.

Pictures are uint8 (N, C, H, W); a network sees ``codes * 2**-bits``, codes being the leading ``bits`` of each pixel.
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from boards.errors import SlimgateError
from pipeline.golden import PIXEL_BITS

EVALUATION_BATCH = 256
# Distillation: how much the teacher's and the pupil's answers are softened.
TEMPERATURE = 4.0
# Below so many input values a batch is too little work to share: threads that wait for each other made the digits
# eight times slower on two busy cores. The number of threads also decides the order of float sums, so it is fixed
# by the size of the pictures and the machine, not by chance.
SHARED_WORK = 100_000


class CheckpointError(SlimgateError):
    """A state file that is not a plain dictionary of tensors, or does not fit its network."""


class TrainingDiverged(SlimgateError):
    """The loss became infinite or not a number."""


def read_split(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, C, H, W) uint8 and labels (N,) int64 of a split file of the data stage (pixels are NHWC there)."""
    with np.load(file, allow_pickle=False) as arrays:
        return to_tensors(arrays["pixels"], arrays["labels"])


def to_tensors(pixels: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pictures (N, H, W, C) and labels (N,) as torch tensors (N, C, H, W) uint8 and (N,) int64."""
    # Strides decide which convolution torch takes, and with it the last bits of every sum. A gray picture counts as
    # contiguous under any strides, so only a fresh tensor is sure to have the same ones wherever it came from.
    channels_first = torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2)
    fresh = torch.empty(channels_first.shape, dtype=torch.uint8).copy_(channels_first)
    return fresh, torch.from_numpy(np.asarray(labels).astype(np.int64))


def to_values(pixels: torch.Tensor, bits: int = PIXEL_BITS, dtype=torch.float32) -> torch.Tensor:
    """uint8 pixels to the values in [0, 1) that the network sees with ``bits`` input bits."""
    return (pixels >> (PIXEL_BITS - bits)).to(dtype) * 2.0**-bits


def set_threads(picture_values: int, batch_size: int = 64) -> int:
    """Let torch use one thread for small pictures, every core we may use for larger ones; returns how many."""
    small = picture_values * batch_size < SHARED_WORK
    threads = 1 if small else len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads


def seed_everything(seed: int) -> None:
    """Fix every random generator in use and demand deterministic algorithms."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def shift(pixels: torch.Tensor, reach: int, generator: torch.Generator) -> torch.Tensor:
    """Move each picture by up to ``reach`` pixels each way; black comes in at the borders. (N, C, H, W) uint8."""
    count, _, height, width = pixels.shape
    padded = nn.functional.pad(pixels, (reach,) * 4)
    offset = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator)
    rows = (offset[0] + torch.arange(height)).view(count, height, 1)
    columns = (offset[1] + torch.arange(width)).view(count, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)


def augmented(pixels: torch.Tensor, augment: str, generator: torch.Generator) -> torch.Tensor:
    """``none``; ``shift``: up to an eighth of the height; ``flip_crop``: the same after mirroring half of them."""
    if augment == "none":
        return pixels
    if augment == "flip_crop":
        mirrored = torch.rand(len(pixels), generator=generator) < 0.5
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return shift(pixels, max(1, pixels.shape[2] // 8), generator)


@torch.no_grad()
def evaluate(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, bits: int = PIXEL_BITS):
    """(correct predictions, mean cross entropy) over all pictures, in evaluation mode."""
    model.eval()
    correct, loss = 0, 0.0
    for start in range(0, len(pixels), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        logits = model(to_values(pixels[part], bits))
        correct += int((logits.argmax(1) == labels[part]).sum())
        loss += float(nn.functional.cross_entropy(logits, labels[part], reduction="sum"))
    return correct, loss / max(1, len(pixels))


def fit(
    model: nn.Module,
    train: tuple[torch.Tensor, torch.Tensor],
    val: tuple[torch.Tensor, torch.Tensor],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    augment: str = "none",
    bits: int = PIXEL_BITS,
    seed: int = 0,
    patience: int | None = None,
    progress: Callable = lambda items, label: items,
    label: str = "train",
    sparsity: float = 0.0,
    teacher: nn.Module | None = None,
    distillation: float = 0.0,
) -> list[dict]:
    """Train in place and leave the model with the weights of its best validation epoch; returns the history.

    AdamW with a cosine schedule to zero. Best = most correct, then lowest loss, on ``val``; the state given counts as
    epoch 0, so that training never makes it worse there. Stops after ``patience`` epochs without a better one.
    ``sparsity`` times the sum of |gamma| over all BatchNorms is added to the loss (network slimming, Liu et al. 2017).
    ``distillation`` is the weight of ``teacher``'s answers (Hinton et al. 2015, softened by ``TEMPERATURE``) against
    that of the labels.
    There is no test set here on purpose: nothing in this loop can be chosen by one.
    Same arguments on the same machine with as many threads give identical weights. Raises TrainingDiverged.
    """
    seed_everything(seed)
    set_threads(train[0][0].numel())
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = train
    # Decaying a scale or a bias pulls it towards an arbitrary value; only weights are decayed.
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    steps = math.ceil(len(pixels) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * steps))

    gammas = [part.weight for part in model.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if teacher is not None:
        teacher.eval()

    correct, loss_val = evaluate(model, *val, bits)
    best = (correct, -loss_val)
    best_state, best_epoch = _copy(model), 0
    history = [{"epoch": 0, "loss": None, "loss_val": loss_val, "correct_val": correct, "best": True}]
    total = 0.0
    for step in progress(range(epochs * steps), label):
        if step % steps == 0:
            model.train()
            order, total = torch.randperm(len(pixels), generator=generator), 0.0
        index = order[step % steps * batch_size :][:batch_size]
        inputs = to_values(augmented(pixels[index], augment, generator), bits)
        logits = model(inputs)
        loss = nn.functional.cross_entropy(logits, labels[index])
        if distillation:
            loss = (1 - distillation) * loss + distillation * _unlike(teacher, logits, inputs)
        if sparsity:
            loss = loss + sparsity * sum(gamma.abs().sum() for gamma in gammas)
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {loss.item()} in epoch {step // steps + 1} of {label}",
                fix="lower the learning rate of that section of the recipe",
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(index)
        if step % steps == steps - 1:
            epoch = step // steps + 1
            correct, loss_val = evaluate(model, *val, bits)
            better = (correct, -loss_val) > best
            loss_train = total / len(pixels)
            history.append(
                {"epoch": epoch, "loss": loss_train, "loss_val": loss_val, "correct_val": correct, "best": better}
            )
            if better:
                best, best_state, best_epoch = (correct, -loss_val), _copy(model), epoch
            elif patience is not None and epoch - best_epoch >= patience:
                break
    model.load_state_dict(best_state)
    model.eval()
    return history


def _unlike(teacher: nn.Module, logits: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """How much softened answers differ from the teacher's: Kullback-Leibler divergence by the squared temperature."""
    with torch.no_grad():
        wanted = nn.functional.log_softmax(teacher(inputs) / TEMPERATURE, 1)
    found = nn.functional.log_softmax(logits / TEMPERATURE, 1)
    divergence = nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return divergence * TEMPERATURE**2


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_state(model: nn.Module, file: Path) -> None:
    """Write the weights, and nothing but weights. The same weights give the same bytes."""
    # torch.save puts the name of the file it writes into the file; a buffer has none.
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}, buffer)
    file.write_bytes(buffer.getvalue())


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """Read weights without executing anything the file may hold. Raises CheckpointError."""
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise CheckpointError("there are no weights here", where=file, fix="run the stage that makes them") from None
    except Exception as error:  # torch raises pickle, zip and runtime errors for a damaged file
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"not a file of weights: {reason}", where=file, fix="run the stage again") from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError("not a dictionary of tensors", where=file, fix="run the stage again")
    return state


def load_state(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Load weights into a network, all of them; CheckpointError where names or shapes differ."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the network: {error}", fix="run the stage again") from error
    return model.eval()
