"""run.py on the simulated board: what passes, and each fault that must not."""

import json
from pathlib import Path

import numpy as np
import pytest

from boards import session
from boards.onboard import run as onboard
from tests.hil.toy import DIGEST, WIRE, build, compile_toy, reseal, toy_outputs, write_golden


def codes_of(folder):
    return np.load(folder / "result.codes.npy")


def test_every_code_equal(on_board, folder, tmp_path):
    code, result = on_board(folder)
    assert (code, result["status"], result["evidence"]) == (0, "ok", "simulated")
    assert result["singles"]["compared_codes"] == 36 and result["stream"]["compared_codes"] == 120
    assert result["probe"]["identity"] == DIGEST[:32] and result["probe"]["equal"] is True
    assert result["probe"]["counted"]["output_lasts"] == 2 + 12 + 1
    assert result["accuracy"]["correct"] == 37 and len(result["predictions"]) == 40
    golden = np.load(folder / "golden.npz")
    assert np.array_equal(codes_of(tmp_path), golden["output_codes"])
    assert result["predictions"] == golden["output_codes"].argmax(1).tolist()


def test_times_of_a_simulated_board_are_not_called_latency(on_board, folder):
    _, result = on_board(folder)
    assert list(result["times"]) == ["host_simulation"] and result["device"]["simulated"]
    words = json.dumps(result)
    assert "latency" not in words
    result["times"] = {"latency": result["times"]["host_simulation"]}
    with pytest.raises(session.SessionError, match="not a valid board result"):
        session.check_result(result)
    result["times"] = None
    assert session.check_result(result) is result


def test_a_measured_result_needs_a_real_overlay(on_board, folder):
    _, result = on_board(folder)
    result["device"]["simulated"], result["evidence"] = False, "measured"
    result["times"] = {"latency": result["times"]["host_simulation"]}
    with pytest.raises(session.SessionError):
        session.check_result(result)
    result["overlay"]["simulated"] = False
    session.check_result(result)


def test_corrupt_golden_outputs_leave_the_boards_codes_and_fail_the_run(on_board, folder, tmp_path):
    on_board(folder)
    before = codes_of(tmp_path)
    outputs = np.load(folder / "golden.npz")["output_codes"].copy()
    outputs[7, 2] += 1
    write_golden(folder, output_codes=outputs)
    reseal(folder)
    code, result = on_board(folder)
    assert (code, result["status"]) == (1, "mismatch")
    assert np.array_equal(codes_of(tmp_path), before)
    board = int(before[7, 2])
    assert result["stream"]["first_mismatch"] == {"sample": 7, "output": 2, "board": board, "golden": board + 1}
    assert (result["stream"]["mismatches"], result["singles"]["mismatches"]) == (1, 1)


def test_a_deleted_library_fails_the_run(on_board, folder, tmp_path):
    on_board(folder)
    code, result = on_board(folder, library=folder / "simulated" / "gone.so")
    assert (code, result["status"]) == (3, "error")
    assert "the compiled design is missing" in result["error"]["text"]
    assert not (tmp_path / "result.codes.npy").exists()  # the old codes are not left as if they were new


def test_a_flipped_output_bit(on_board, folder):
    code, result = on_board(folder, library=compile_toy("-DFAULT_FLIP_BIT=5"))
    assert (code, result["status"]) == (1, "mismatch")
    assert result["singles"]["mismatches"] == 1 and result["stream"]["mismatches"] == 0
    first = result["singles"]["first_mismatch"]
    assert (first["sample"], first["output"], first["board"] ^ first["golden"]) == (2, 1, 4)  # fifth after two warm-ups


def test_a_bit_flipped_in_the_stream_only(on_board, folder):
    code, result = on_board(folder, library=compile_toy("-DFAULT_FLIP_BIT=20"))
    assert (code, result["status"]) == (1, "mismatch")
    assert result["singles"]["mismatches"] == 0 and result["stream"]["mismatches"] == 1
    assert result["stream"]["first_mismatch"]["sample"] == 20 - 2 - 12 - 1


def test_missing_tlast_is_a_timeout_after_one_retry(on_board, folder):
    code, result = on_board(folder, library=compile_toy("-DFAULT_NO_TLAST"))
    assert (code, result["error"]["kind"]) == (3, "timeout")
    details = result["error"]["details"]
    assert details["receive_status"] & 0x73 == 0
    # Counted from zero: the overlay was loaded again in between.
    assert details["probe"] == {"input_beats": 2, "input_lasts": 1, "output_beats": 2, "output_lasts": 0}


def test_early_tlast_is_a_wrong_length(on_board, folder):
    code, result = on_board(folder, library=compile_toy("-DFAULT_EARLY_TLAST"))
    assert (code, result["error"]["kind"]) == (1, "length")
    assert (result["error"]["details"]["received"], result["error"]["details"]["wanted"]) == (8, 16)


def test_a_last_beat_that_is_not_kept_whole_is_a_wrong_length(on_board, folder):
    code, result = on_board(folder, library=compile_toy("-DFAULT_SHORT_KEEP"))
    assert (code, result["error"]["kind"], result["error"]["details"]["received"]) == (1, "length", 12)


def test_more_beats_than_asked_for_is_a_dma_error_at_once(on_board, folder):
    code, result = on_board(folder, library=compile_toy("-DFAULT_EXTRA_BEAT"))
    assert (code, result["error"]["kind"]) == (3, "dma")
    assert result["error"]["details"]["status"] & 0x10


def test_dirty_padding_is_a_mismatch(on_board, folder):
    code, result = on_board(folder, library=compile_toy("-DFAULT_PADDING"))
    assert (code, result["status"]) == (1, "mismatch")
    assert result["stream"]["mismatches"] == 0 and result["stream"]["padding_bytes_not_zero"] == 40


def test_a_stale_overlay_is_not_run(on_board, folder):
    other = '-DIDENTITY="' + "f" * 64 + '"'
    code, result = on_board(folder, library=compile_toy(other))
    assert (code, result["error"]["kind"]) == (2, "identity")
    assert "ffffffffffff" in result["error"]["text"] and DIGEST[:12] in result["error"]["text"]


def test_a_transfer_that_hangs_once_is_retried_and_said(on_board, folder, monkeypatch):
    from boards.simulated import device

    feed, calls = device.Streams.feed, []

    def swallow_the_fifth(self, data):
        calls.append(1)
        feed(self, data)
        if len(calls) == 5:
            self.data, self.last, self.keep = b"", b"", b""

    resets = []
    write = device.AxiDma.write

    def watched(self, offset, value):
        if offset == 0 and value & 4:
            resets.append(self)
        write(self, offset, value)

    monkeypatch.setattr(device.Streams, "feed", swallow_the_fifth)
    monkeypatch.setattr(device.AxiDma, "write", watched)
    code, result = on_board(folder)
    assert code == 0
    assert len(resets) == 1  # stopped before the overlay is loaded under it
    assert [("did not end" in retry["text"]) for retry in result["retries"]] == [True]
    assert result["probe"]["expected"] is None and result["probe"]["equal"] is None


def test_beats_that_nobody_sent_for_are_noticed(on_board, folder, monkeypatch):
    from boards.simulated import device

    counters = device.Probe.read
    monkeypatch.setattr(
        device.Probe, "read", lambda self, offset: counters(self, offset) + (offset == onboard.PROBE["OUTPUT_BEATS"])
    )
    code, result = on_board(folder)
    assert (code, result["status"], result["probe"]["equal"]) == (1, "mismatch", False)


def test_a_set_larger_than_the_memory_goes_in_chunks(on_board, tmp_path):
    count = (1 << 20) // (2 * 16) + 100
    package = build(tmp_path, golden=write_golden(tmp_path, count))
    code, result = on_board(package.folder, "--memory-mib", "1")
    assert code == 0
    assert (result["stream"]["transfers"], result["stream"]["samples"]) == (2, count)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_codes": np.zeros((40, 4), np.int64)}, "io.json wants 3 outputs"),
        ({"labels": np.zeros(39, np.int64)}, "labels (39,)"),
        ({"output_scale_log2": np.int64(-8)}, "scales"),
        ({"input_codes": np.full((40, 4, 4, 1), 64, np.uint8)}, "6 bits hold 0 to 63"),
        ({"input_codes": np.zeros((40, 4, 2, 2), np.uint8)}, "the network takes"),
        ({"input_codes": np.zeros((0, 4, 4, 1), np.uint8)}, "holds inputs"),
    ],
)
def test_golden_vectors_that_do_not_fit(on_board, folder, change, words):
    write_golden(folder, **change)
    reseal(folder)
    code, result = on_board(folder)
    assert code == 2 and words in result["error"]["text"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("beat_bytes",), 4, "beats"),
        (("output", "beats"), 3, "not 3 beats"),
        (("output", "bits"), 33, "do not fit"),
        (("design_digest",), "0" * 64, "another design"),
    ],
)
def test_a_wrong_wire_description(on_board, folder, path, value, words):
    wire = json.loads(json.dumps(WIRE))
    part = wire
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (folder / "io.json").write_text(json.dumps(wire))
    reseal(folder)
    code, result = on_board(folder)
    assert code == 2 and words in result["error"]["text"]


def test_a_changed_file_is_named(on_board, folder):
    file = folder / "labels.json"
    file.write_bytes(file.read_bytes().replace(b"mid", b"mod"))
    code, result = on_board(folder)
    assert code == 2 and "labels.json" in result["error"]["text"]


def test_pynq_4_is_refused_on_zynq_7000_only(on_board, folder, tmp_path, monkeypatch):
    import pynq

    monkeypatch.setattr(pynq, "__version__", "4.0.0")
    code, result = on_board(folder)
    assert code == 2 and "pynq 4 dropped Zynq-7000" in result["error"]["text"]
    zynqmp = build(tmp_path / "mp", board="kv260", golden=write_golden(tmp_path))
    code, _ = on_board(zynqmp.folder, board="kv260")
    assert code == 0
    monkeypatch.setattr(pynq, "__version__", "2.7.0")
    code, result = on_board(folder)
    assert code == 2 and "3.0.1 <= pynq < 4" in result["error"]["text"]


def test_a_board_that_says_it_is_another_one(on_board, folder, tmp_path, monkeypatch):
    from boards.simulated import device

    monkeypatch.setattr(device, "NAME_PREFIX", "edge-")
    monkeypatch.setattr(onboard, "BOARD_FILE", tmp_path / "pynq_board")
    (tmp_path / "pynq_board").write_bytes(b"Pynq-Z1\0")
    code, result = on_board(folder)
    assert (code, result["error"]["kind"]) == (2, "board") and "Pynq-Z1" in result["error"]["text"]
    (tmp_path / "pynq_board").write_bytes(b"Pynq-Z2\0")
    code, result = on_board(folder)
    assert result["error"]["kind"] == "overlay"  # past the check of the board


def test_another_overlay_in_the_device(on_board, folder, monkeypatch):
    from boards.simulated import device

    after = device.SimulatedDevice.post_download

    def another(self, *arguments):
        after(self, *arguments)
        self.timestamp = "another process loaded another overlay"

    monkeypatch.setattr(device.SimulatedDevice, "post_download", another)
    code, result = on_board(folder)
    assert (code, result["error"]["kind"]) == (3, "overlay")


def test_an_overlay_without_probe(on_board, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / manifest["overlay"]["hwh"]
    file.write_text(file.read_text().replace("probe_0", "probe_9"))
    reseal(folder)
    code, result = on_board(folder)
    assert code == 2 and "no probe_0" in result["error"]["text"]


def test_a_probe_that_is_not_ours(on_board, folder, monkeypatch):
    from boards import netlist

    monkeypatch.setattr(netlist, "PROBE_MAGIC", 0xDEADBEEF)
    code, result = on_board(folder)
    assert code == 2 and "0xdeadbeef" in result["error"]["text"]


def test_a_buffer_that_the_dma_cannot_address(on_board, folder, monkeypatch):
    from boards.simulated import device

    monkeypatch.setattr(device.Memory, "BASE", (1 << 32) - 8192)
    code, result = on_board(folder)
    assert (code, result["error"]["kind"]) == (3, "memory")
    assert "beyond what the DMA can address" in result["error"]["text"]


def test_little_memory_means_more_transfers_and_none_an_error(on_board, tmp_path, monkeypatch):
    from boards.simulated import device

    package = build(tmp_path, golden=write_golden(tmp_path, 4000))
    monkeypatch.setattr(device.Memory, "SIZE", 16 * 4096)
    code, result = on_board(package.folder)
    assert code == 0 and result["stream"]["transfers"] == 4
    monkeypatch.setattr(device.Memory, "SIZE", 4 * 4096)  # just the buffers of the single samples
    code, result = on_board(package.folder)
    assert code == 3 and "no memory for buffers" in result["error"]["text"]


def test_the_wrong_family_of_board_is_refused(on_board, folder):
    code, result = on_board(folder, board="kv260")
    assert (code, result["error"]["kind"]) == (2, "board")
    code, result = on_board(folder, board="minized")  # same family, another part
    assert code == 3 and "7z020clg400" in result["error"]["text"]


def test_a_real_device_never_gets_the_stand_in(on_board, folder, monkeypatch):
    from boards.simulated import device

    monkeypatch.setattr(device, "NAME_PREFIX", "edge-")  # a device that does not say that it is simulated
    code, result = on_board(folder)
    assert (code, result["error"]["kind"]) == (2, "overlay")
    assert "SIMULATED" in result["error"]["text"]


@pytest.mark.parametrize("part", ["bit", "hwh"])
def test_a_mark_that_only_one_file_carries_is_refused(on_board, folder, part):
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / manifest["overlay"][part]
    file.write_bytes(file.read_bytes().replace(b"SIMULATED", b"GENUINE!!"))
    reseal(folder)
    code, result = on_board(folder)
    assert code == 2 and "SIMULATED" in result["error"]["text"]


def test_a_real_overlay_on_the_simulated_board_is_still_simulated(on_board, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    for part in ("bit", "hwh"):
        file = folder / manifest["overlay"][part]
        file.write_bytes(file.read_bytes().replace(b"SIMULATED", b"GENUINE!!"))
    manifest["simulated"] = False
    (folder / "manifest.json").write_bytes(onboard.canonical(manifest))
    reseal(folder)
    code, result = on_board(folder)
    assert (code, result["evidence"], result["overlay"]["simulated"]) == (0, "simulated", False)


def test_the_result_is_there_in_full_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    out.write_text("old")
    monkeypatch.setattr(onboard.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        onboard.write_whole(out, b"new")
    assert out.read_text() == "old"


def test_a_result_that_cannot_be_written_is_not_a_mismatch(folder, tmp_path, monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onboard.os, "fsync", full)
    assert onboard.main(["--package", str(tmp_path), "--out", str(tmp_path / "r.json")]) == 3
    assert "No space left on device" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        onboard.main(["--package", str(folder), "--out", str(tmp_path / "none" / "r.json")])
    assert stop.value.code == 2


@pytest.mark.parametrize("text", ["--singles 0", "--warmup -1", "--timeout 0", "--memory-mib 0"])
def test_senseless_options(text, tmp_path):
    with pytest.raises(SystemExit) as stop:
        onboard.main(["--out", str(tmp_path / "r.json"), *text.split()])
    assert stop.value.code == 2


def test_percentiles_are_times_that_occurred():
    summary = onboard.microseconds([1000 * n for n in range(1, 101)])
    assert summary == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0, "count": 100}


def test_wilson_interval_agrees_with_the_pipelines():
    from pipeline.statistics import wilson

    for successes, total in [(0, 5), (5, 5), (37, 40), (355, 360)]:
        assert onboard.wilson(successes, total) == pytest.approx(wilson(successes, total), abs=1e-12)


def test_signed_and_wide_containers_pack_and_unpack():
    wire = onboard.Wire({
        "beat_bytes": 8,
        "input": {"shape": [3], "bits": 12, "signed": True, "container_bytes": 2, "scale_log2": 0, "beats": 1},
        "output": {"shape": [1], "bits": 40, "signed": True, "container_bytes": 8, "scale_log2": 0, "beats": 1},
    })  # fmt: skip
    packed = wire.pack(np.array([[-2048, 2047, -1]]))
    assert packed.tolist() == [[0x00, 0xF8, 0xFF, 0x07, 0xFF, 0xFF, 0, 0]]
    codes, dirty = wire.unpack(np.array([[0xFE, *[0xFF] * 7]], np.uint8))
    assert (codes.tolist(), dirty) == ([[-2]], 0)
    with pytest.raises(onboard.Stop, match="12 bits hold"):
        wire.pack(np.array([[2048, 0, 0]]))


def test_first_difference_in_reading_order():
    golden = toy_outputs(np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1))
    board = golden.copy()
    board[1, 0] += 1
    board[0, 2] -= 1
    assert onboard.first_difference(board, golden)["sample"] == 0
    assert onboard.first_difference(golden, golden) is None


def test_the_script_is_the_one_in_the_package(folder):
    for name in ("run.py", "predict.py"):
        source = Path(onboard.__file__).with_name(name)
        assert (folder / name).read_bytes() == source.read_bytes()
