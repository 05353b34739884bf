"""Pictures on the board: the codes of training, the classes of the design."""

import runpy

import numpy as np
import pytest
from PIL import Image

from boards import board, predict, session
from boards.onboard import predict as onboard
from boards.simulated.session import SimulatedSession
from pipeline import package as building
from pipeline.datasets.pictures import PictureError
from pipeline.datasets.pictures import load_picture as of_training
from tests.hil.toy import build, compile_toy, toy_outputs

RNG = np.random.default_rng(3)


def noise(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def _gray_alpha():
    return Image.merge("LA", [Image.fromarray(noise(9, 7)), Image.fromarray(noise(9, 7))])


def _palette(transparent):
    picture = Image.fromarray(noise(9, 7, 3)).quantize(16)
    if transparent:
        picture.info["transparency"] = 3
    return picture


def _turned():
    picture = Image.fromarray(noise(9, 7, 3))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    return picture, exif.tobytes()


PICTURES = {
    "gray.png": lambda: Image.fromarray(noise(9, 7)),
    "gray-fits.png": lambda: Image.fromarray(noise(4, 4)),
    "one-bit.png": lambda: Image.fromarray(noise(9, 7)).convert("1"),
    "rgb.png": lambda: Image.fromarray(noise(9, 7, 3)),
    "rgb.bmp": lambda: Image.fromarray(noise(9, 7, 3)),
    "rgba.png": lambda: Image.fromarray(noise(9, 7, 4), "RGBA"),
    "gray-alpha.png": _gray_alpha,
    "palette.png": lambda: _palette(False),
    "palette-transparent.png": lambda: _palette(True),
    "rgb-transparent-color.png": lambda: _with_key(Image.fromarray(noise(9, 7, 3))),
    "photo.jpg": lambda: Image.fromarray(noise(40, 30, 3)),
    "cmyk.jpg": lambda: Image.fromarray(noise(16, 16, 4), "CMYK"),
    "turned.jpg": _turned,
}


def _with_key(picture):
    picture.putpixel((1, 1), (1, 2, 3))
    picture.info["transparency"] = (1, 2, 3)
    return picture


def save(folder, name):
    made = PICTURES[name]()
    picture, exif = made if isinstance(made, tuple) else (made, None)
    options = {"exif": exif} if exif else {}
    if "transparency" in picture.info:
        options["transparency"] = picture.info["transparency"]
    picture.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", PICTURES)
def test_the_board_sees_the_pixels_of_training(tmp_path, name):
    path = save(tmp_path, name)
    for color in ("rgb", "gray"):
        for resize in ("nearest", "box", "bilinear", "bicubic", "lanczos"):
            for size in ([4, 4], [13, 5]):
                here = onboard.load_picture(path, size, color, resize)
                there = of_training(path, tuple(size), color, resize)
                assert here.dtype == np.uint8 and here.shape == (*size, 3 if color == "rgb" else 1)
                assert np.array_equal(here, there), (color, resize, size)


def test_turned_and_transparent_pictures_are_not_taken_as_they_lie(tmp_path):
    path = tmp_path / "t.jpg"
    top = np.zeros((40, 40, 3), np.uint8)
    top[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(top).save(path, exif=exif.tobytes(), quality=95)
    pixels = onboard.load_picture(path, [40, 40], "gray", "box")
    assert pixels[:, 25:].mean() > 250 and pixels[:, :15].mean() < 5
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    clear.save(tmp_path / "c.png")
    assert onboard.load_picture(tmp_path / "c.png", [4, 4], "rgb", "box").max() == 0


def _sixteen(path):
    Image.fromarray(noise(4, 4).astype(np.uint16) * 256).save(path)


def _floating(path):
    Image.fromarray(noise(4, 4).astype(np.float32)).save(path, "TIFF")


def _two_frames(path):
    frames = [Image.fromarray(noise(4, 4)) for _ in range(2)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def _cut_short(path):
    Image.fromarray(noise(64, 64, 3)).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:-4000])


@pytest.mark.parametrize(
    "make", [_sixteen, _floating, _two_frames, _cut_short, lambda path: path.write_bytes(b""), lambda path: None]
)
def test_what_training_refuses_the_board_refuses_and_names(tmp_path, make):
    path = tmp_path / "picture.png"
    make(path)
    with pytest.raises(onboard.run.Stop, match=r"picture\.png cannot be read") as stop:
        onboard.load_picture(path, [4, 4], "gray", "bilinear")
    assert stop.value.code == 2
    with pytest.raises(PictureError):
        of_training(path, (4, 4), "gray", "bilinear")


def test_drawings_and_giants_are_refused(tmp_path, monkeypatch):
    from pipeline.datasets import pictures

    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "drawing.eps")
    with pytest.raises(onboard.run.Stop, match="a drawing, not a picture"):
        onboard.load_picture(tmp_path / "drawing.eps", [4, 4], "rgb", "box")
    assert onboard.MAX_PIXELS == pictures.MAX_PIXELS
    monkeypatch.setattr(onboard, "MAX_PIXELS", 62)
    with pytest.raises(onboard.run.Stop, match="9 x 7 pixels|7 x 9 pixels"):
        onboard.load_picture(save(tmp_path, "gray.png"), [4, 4], "gray", "box")


def test_dirty_padding_is_no_answer(tmp_path):
    from boards.simulated import device

    package = build(tmp_path, library=compile_toy("-DFAULT_PADDING"))
    machine = device.register(package.library, board.load("pynq-z2"))
    try:
        classifier = onboard.Classifier(package.folder)
        with pytest.raises(onboard.run.Stop, match="padding"):
            classifier.codes(np.zeros((2, 4, 4, 1), np.uint8))
    finally:
        machine.close()


def test_codes_are_the_upper_bits():
    assert onboard.to_codes(np.array([0, 3, 4, 255]), 6).tolist() == [0, 0, 1, 63]
    assert onboard.to_codes(np.array([0, 255]), 8).tolist() == [0, 255]


def test_predict_names_the_classes_the_design_computes(toy_package, tmp_path):
    paths = [save(tmp_path, name) for name in ("gray.png", "turned.jpg", "palette-transparent.png")]
    archive = building.pack(toy_package, tmp_path / "package.tar.gz")
    answers = predict.classify(archive, paths, "simulated", 2)
    codes = np.stack([of_training(p, (4, 4), "gray", "bilinear") >> 2 for p in paths])
    outputs = toy_outputs(codes)
    assert [a["image"] for a in answers] == [str(p) for p in paths]
    for answer, row in zip(answers, outputs, strict=True):
        best = answer["top"][0]
        assert len(answer["top"]) == 2
        assert (best["index"], best["code"]) == (row.argmax(), row.max())
        assert (best["label"], best["value"]) == (["low", "mid", "high"][row.argmax()], row.max() / 512)


def test_a_session_loads_identifies_runs_and_closes(toy_package, tmp_path):
    codes = np.random.default_rng(5).integers(0, 64, (7, 4, 4, 1)).astype(np.uint8)
    with session.open_session("simulated", board.load("pynq-z2")) as place:
        assert (place.place, place.simulated) == ("simulated", True)
        with pytest.raises(session.SessionError, match="no package is loaded"):
            place.run(codes)
        place.load(toy_package.folder)
        assert np.array_equal(place.run(codes), toy_outputs(codes))
        with pytest.raises(session.SessionError, match="no such picture"):
            place.classify([tmp_path / "none.png"])
        bad = tmp_path / "bad.png"
        bad.write_text("text")
        with pytest.raises(session.SessionError, match=r"bad\.png cannot be read"):
            place.classify([bad])


def test_a_script_that_does_not_end_is_ended(toy_package):
    with SimulatedSession(board.load("pynq-z2")) as place:
        place.load(toy_package.folder)
        with pytest.raises(session.SessionError, match="did not end within"):
            place.execute("run.py", ["--out", "/dev/null"], timeout=0.05)


@pytest.mark.parametrize("lab", [True, False])
def test_a_real_place_says_what_was_sought(tmp_path, monkeypatch, lab):
    monkeypatch.chdir(tmp_path)
    if lab:
        (tmp_path / "lab.toml").write_text("[desk]\n")
    with pytest.raises(session.PlaceError) as error:
        session.open_session("desk", board.load("pynq-z2"))
    assert "'desk'" in str(error.value) and str(tmp_path / "lab.toml") in str(error.value)


def test_a_result_that_is_none(tmp_path):
    path = tmp_path / "result.json"
    for text in ("", "[]", '{"schema": 1}', '{"schema": 2, "kind": "slimgate-board-result", "status": "ok"}'):
        path.write_text(text)
        with pytest.raises(session.SessionError):
            session.read_result(path)


def test_equal_codes_give_the_first_class(toy_package):
    classifier = onboard.Classifier.__new__(onboard.Classifier)
    classifier.wire = type("W", (), {"output": {"scale_log2": 0}})
    classifier.labels = ["a", "b", "c"]
    assert [item["label"] for item in classifier.top(np.array([1, 4, 4]), 3)] == ["b", "c", "a"]


def test_the_runner_refuses_an_unknown_board(capsys):
    module = runpy.run_module("boards.simulated.runner")
    assert module["main"](["--library", "x.so", "--board", "pynq-z3", "--", "run.py"]) == 2
    assert "did you mean" in capsys.readouterr().err
