"""What rule4ml 0.2.0 predicts for a folder of published designs; run in an environment of its own.

    python -m venv rule4ml && rule4ml/bin/pip install rule4ml==0.2.0
    rule4ml/bin/python docs/results/rule4ml_predict.py DESIGNS_DIR > docs/results/rule4ml.json

rule4ml takes one precision and one reuse factor per network and knows four boards; each design gets the nearest: the
median weight width, the median reuse factor, the board of the same family. Networks with layers it has no class for are
left out, and so are edited forks of hls4ml.
"""

import json
import math
import os
import statistics
import sys
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "torch"}
# first: rule4ml imports TensorFlow as well, and the two carry different copies of LLVM
import torch  # noqa: F401, I001
import keras
from rule4ml.models.wrappers import MultiModelWrapper

BOARDS = {"xc7z": "pynq-z2", "xc7a": "pynq-z2", "xczu": "zcu102", "xck2": "zcu102",
          "xcu2": "alveo-u250", "xcu5": "alveo-u250"}


def bits(text):
    return int(text.split("<")[1].split(",")[0].rstrip(">")) if text and "<" in text else None


def network(design):
    """(Keras model, hls configuration), or None where rule4ml has no class for a layer."""
    work = [x for x in design["layers"]
            if isinstance(x.get("n_params"), dict) and ("conv" in x["type"] or "dense" in x["type"])]
    board = next((b for k, b in BOARDS.items() if design["part"].startswith(k)), None)
    if not work or board is None or design.get("stock_hls4ml") is False:
        return None
    first = next(x for x in design["layers"] if x.get("in_shape"))
    net, shape = [keras.Input(tuple(first["in_shape"]))], list(first["in_shape"])
    for x in design["layers"]:
        kind = x["type"]
        if "separable" in kind or "large" in kind or "resize" in kind:
            return None
        if "conv_2d" in kind or "conv_1d" in kind:
            cls = keras.layers.Conv2D if "2d" in kind else keras.layers.Conv1D
            net.append(cls(x["out_shape"][-1], x["kernel"], strides=x["stride"]))
        elif "global_pooling" in kind:
            net.append(keras.layers.GlobalMaxPooling1D() if "1d" in kind else keras.layers.GlobalAveragePooling2D())
        elif "pooling" in kind:
            cls = keras.layers.MaxPooling2D if "2d" in kind else keras.layers.MaxPooling1D
            net.append(cls(x["kernel"], strides=x["stride"]))
        elif "zeropad" in kind:
            low = [o - i for i, o in zip(x["in_shape"][:-1], x["out_shape"][:-1], strict=True)]
            pads = [(p // 2, p - p // 2) for p in low]
            net.append(keras.layers.ZeroPadding2D(pads) if len(pads) > 1 else keras.layers.ZeroPadding1D(pads[0]))
        elif kind.startswith("dense"):
            net += ([keras.layers.Flatten()] if len(shape) > 1 else [])
            net.append(keras.layers.Dense(x["out_shape"][-1]))
        elif kind.startswith("normalize"):
            net.append(keras.layers.BatchNormalization())
        elif kind.split("_")[0].split("(")[0] in ("relu", "softmax", "sigmoid", "tanh"):
            net.append(keras.layers.Activation(kind.split("_")[0].split("(")[0]))
        elif "quantize" in kind or kind == "linear":
            continue
        else:
            return None
        shape = [d for d in keras.Sequential(net).output_shape if d is not None]
    width = round(statistics.median([bits(x.get("weight_precision")) or 16 for x in work]))
    factor = statistics.median([(x.get("mult") or {}).get("reuse_factor") or x.get("reuse_factor") or 1 for x in work])
    strategy = next((x["strategy"] for x in work if x.get("strategy")), "latency")
    config = {"board": board, "model": {"strategy": strategy.capitalize(), "reuse_factor": int(factor),
                                        "precision": f"ap_fixed<{width}, {min(6, width)}>"}}
    model = keras.Sequential(net)
    model.build((None, *first["in_shape"]))
    arriving = (None, *first["in_shape"])
    for layer in model.layers:
        # rule4ml reads input shapes from a field that Keras 3 fills for layers with weights only
        if not getattr(layer, "_build_shapes_dict", None):
            layer._build_shapes_dict = {"input_shape": arriving}
        arriving = layer.compute_output_shape(arriving)
    return model, config


def main():
    estimator, found, refused = MultiModelWrapper(), {}, {}
    estimator.load_default_models()
    for path in sorted(Path(sys.argv[1]).rglob("*.json")):
        design = json.loads(path.read_text())
        try:
            made = network(design)
            if made is None:
                refused[design["name"]] = "no class for a layer, the part or the fork"
                continue
            table = estimator.predict(made[0], hls_configs=[made[1]])
        except Exception as error:  # noqa: BLE001 - anything Keras or rule4ml may raise about an unusual network
            refused[design["name"]] = f"{type(error).__name__}: {str(error)[:120]}"
            continue
        figures = {name: float(table[name.upper()].dropna().median()) for name in
                   ("lut", "ff", "dsp", "bram", "cycles", "interval") if name.upper() in table}
        print(design["name"], figures, file=sys.stderr)
        found[design["name"]] = {("bram18" if k == "bram" else "latency" if k == "cycles" else k): round(max(v, 0.0), 1)
                                 for k, v in figures.items() if not math.isnan(v)}
    result = {"estimator": "rule4ml 0.2.0, default weights", "predictions": found, "refused": refused}
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
