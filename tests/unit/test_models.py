import subprocess
import sys

import pytest

from pipeline import models


def test_names_and_layers_need_no_torch():
    code = (
        "import sys; from pipeline import models; print(models.names(), models.layer_names('resnet8')[-2:]);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['cnn_small', 'mobilenet', 'resnet20'")


def test_unknown_model_and_convolution_name_what_there_is():
    with pytest.raises(models.ModelError, match="did you mean 'resnet8'"):
        models.widths_of("resnet8x")
    with pytest.raises(models.ModelError, match="did you mean 'block1.conv1'"):
        models.widths_of("resnet8", {"block1.convv1": 8})


def test_widths_are_changed_and_the_others_kept():
    assert models.widths_of("cnn_small", {"conv2": 5}) == {"conv1": 16, "conv2": 5, "conv3": 32}
    assert models.widths_of("cnn_small") == {"conv1": 16, "conv2": 32, "conv3": 32}


def test_tied_convolutions_need_one_width():
    with pytest.raises(models.ModelError, match=r"block2.conv2=24, block2.shortcut=32"):
        models.widths_of("resnet8", {"block2.conv2": 24})
    assert models.widths_of("resnet8", {"block2.conv2": 24, "block2.shortcut": 24})["block2.shortcut"] == 24


@pytest.mark.parametrize(("model", "size"), [("cnn_small", (9, 8)), ("resnet8", (30, 32)), ("cnn_small", (0, 0))])
def test_pictures_that_do_not_divide_are_refused(model, size):
    with pytest.raises(models.ModelError, match="multiples of"):
        models.build(model, models.widths_of(model), None, (1, *size), 10)
