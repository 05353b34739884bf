import io
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import models, train

SHAPE = (1, 8, 8)


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    pixels = torch.randint(0, 120, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    pixels[labels == 1, :, :4] += 100  # bright above: easy to learn
    return pixels, labels


def small():
    return models.build("cnn_small", {"conv1": 4, "conv2": 4, "conv3": 4}, None, SHAPE, 2)


def fitted(seed=0, **changes):
    train.seed_everything(seed)
    model = small()
    settings = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "augment": "shift", "seed": seed} | changes
    return model, train.fit(model, pictures(96), pictures(48, 1), **settings)


def test_values_are_the_leading_bits_of_the_pixels():
    pixels = torch.tensor([0, 1, 15, 16, 128, 255], dtype=torch.uint8)
    assert train.to_values(pixels).tolist() == [p / 256 for p in (0, 1, 15, 16, 128, 255)]
    assert train.to_values(pixels, 4).tolist() == [0, 0, 0, 1 / 16, 0.5, 15 / 16]


def test_same_seed_gives_identical_weights_and_files(tmp_path):
    (first, one), (second, two), (third, _) = fitted(0), fitted(0), fitted(1)
    assert json.dumps(one) == json.dumps(two)
    for number, model in enumerate((first, second, third)):
        train.save_state(model, tmp_path / f"{number}.pt")
    files = [(tmp_path / f"{number}.pt").read_bytes() for number in range(3)]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_it_learns_and_keeps_the_best_validation_epoch():
    model, history = fitted(epochs=6)
    correct, loss = train.evaluate(model, *pictures(48, 1))
    best = [entry for entry in history if entry["best"]][-1]
    assert (correct, loss) == (best["correct_val"], best["loss_val"])
    assert correct == max(entry["correct_val"] for entry in history) > 40


def test_a_worse_end_is_not_kept():
    model, _ = fitted(epochs=6)
    before = train.evaluate(model, *pictures(48, 1))
    train.fit(model, pictures(96), pictures(48, 1), epochs=1, batch_size=16, learning_rate=1.0)
    after = train.evaluate(model, *pictures(48, 1))
    assert (after[0], -after[1]) >= (before[0], -before[1])


def test_patience_stops_early():
    # A learning rate too small to change any weight: no epoch is better than the start.
    _, history = fitted(epochs=20, patience=2, learning_rate=1e-30, augment="none")
    assert len(history) - 1 < 20


def test_a_diverging_loss_is_an_error():
    with pytest.raises(train.TrainingDiverged, match="learning rate"):
        fitted(learning_rate=1e30, epochs=4)


def test_only_weights_are_decayed():
    model = small()
    bias = model.classifier.bias.detach().clone()
    train.fit(model, pictures(16), pictures(16), epochs=1, batch_size=16, learning_rate=1e-30, weight_decay=1e29)
    assert torch.equal(model.classifier.bias, bias)


@pytest.mark.parametrize("augment", ["none", "shift", "flip_crop"])
def test_augmented_pictures_stay_uint8_and_labels_stay_with_them(augment):
    pixels = torch.zeros(64, 2, 16, 16, dtype=torch.uint8)
    pixels[:, :, 6:10, 6:10] = torch.arange(64, dtype=torch.uint8).view(-1, 1, 1, 1) + 1
    out = train.augmented(pixels, augment, torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8 and out.shape == pixels.shape
    # The square is far enough from the border to survive any shift: picture k still holds 16 pixels of k + 1.
    assert torch.equal(out.amax((1, 2, 3)), pixels.amax((1, 2, 3)))
    assert torch.equal(out.ne(0).sum((1, 2, 3)), pixels.ne(0).sum((1, 2, 3)))
    assert torch.equal(out, pixels) == (augment == "none")


def test_shift_reaches_both_ways_and_no_further():
    pixels = torch.zeros(500, 1, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4, 4] = 1
    out = train.shift(pixels, 2, torch.Generator().manual_seed(0))
    rows, columns = out[:, 0].nonzero()[:, 1], out[:, 0].nonzero()[:, 2]
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == [2, 3, 4, 5, 6]


def test_flip_crop_mirrors_about_half():
    pixels = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    pixels[:, :, :, :4] = 1
    left = train.augmented(pixels, "flip_crop", torch.Generator().manual_seed(0))[:, :, :, 1].amax((1, 2))
    assert 140 < int(left.sum()) < 260


def test_checkpoints_load_weights_only(tmp_path):
    file = tmp_path / "state.pt"
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return (touched.write_text, ("owned",))

    torch.save({"w": Evil()}, file)
    with pytest.raises(train.CheckpointError):
        train.read_state(file)
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(train.CheckpointError):
        train.read_state(file)
    assert not touched.exists()


def test_damaged_missing_and_foreign_checkpoints_are_named(tmp_path):
    file = tmp_path / "state.pt"
    with pytest.raises(train.CheckpointError, match="no weights"):
        train.read_state(file)
    train.save_state(small(), file)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(train.CheckpointError, match="not a file of weights"):
        train.read_state(file)
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    file.write_bytes(buffer.getvalue())
    with pytest.raises(train.CheckpointError, match="dictionary of tensors"):
        train.read_state(file)
    with pytest.raises(train.CheckpointError, match="do not fit"):
        train.load_state(small(), {"conv1.weight": torch.zeros(1)})


def test_read_split_turns_pictures_to_channels_first(tmp_path):
    pixels = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    np.savez(tmp_path / "train.npz", pixels=pixels, labels=np.array([1, 0]))
    got, labels = train.read_split(tmp_path / "train.npz")
    assert got.shape == (2, 2, 3, 4) and labels.tolist() == [1, 0]
    assert got[1, 1, 2, 3] == pixels[1, 2, 3, 1]


def test_gray_pictures_have_the_same_strides_wherever_they_came_from(tmp_path):
    """torch picks its convolution by strides; the same pictures must train to the same weights on every way in."""
    pixels = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8, 1)
    np.savez(tmp_path / "train.npz", pixels=pixels, labels=np.zeros(5))
    ways = [train.read_split(tmp_path / "train.npz")[0], train.to_tensors(pixels, np.zeros(5))[0]]
    ways.append(train.to_tensors(np.asfortranarray(pixels), np.zeros(5))[0])
    assert {way.stride() for way in ways} == {(64, 64, 8, 1)}
    assert all(torch.equal(ways[0], way) for way in ways)


def test_evaluation_counts_every_picture_once():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    pixels, labels = pictures(600)
    correct, _ = train.evaluate(Constant(), pixels, labels)
    assert correct == int((labels == 0).sum())
