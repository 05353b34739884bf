"""Ways to trim, by the name [trim].method has in the recipe. A further one is a function here and a line below.

Each takes a trained float network and everything that may be needed to make it smaller, and returns
``pipeline.trimming.schedule.Result``:

    METHODS[options.method](model, build=, input_shape=, batches=, finetune=, options=)

``options`` is the recipe's [trim] section (ratio, of, steps, min_filters, statistic); the rest as in ``schedule.trim``.
"""

import numpy as np

from pipeline.trimming import schedule
from pipeline.trimming.count import count
from pipeline.trimming.groups import CONVOLUTIONS


def relevance(model, *, build, input_shape, batches, finetune, options) -> schedule.Result:
    """Relevance of the activations over the training set, iteratively: see ``criteria`` and ``schedule``."""
    return schedule.trim(
        model,
        build=build,
        input_shape=input_shape,
        batches=batches,
        finetune=finetune,
        criterion=options.statistic,
        ratio=options.ratio,
        of=options.of,
        steps=options.steps,
        min_filters=options.min_filters,
    )


def none(model, *, build, input_shape, batches, finetune, options) -> schedule.Result:
    """Leaves the network whole. Nothing is traced or scored, so that any network passes."""
    counted = count(model, input_shape)
    widths = {name: module.out_channels for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}
    size = {"macs": counted["macs"], "parameters": counted["parameters"], "filters": sum(widths.values())}
    return schedule.Result(
        widths=widths,
        state={key: value.detach().clone() for key, value in model.state_dict().items()},
        scores={path: np.zeros(0) for path in widths},
        relevance={path: np.zeros(0) for path in widths},
        kept={path: np.arange(number) for path, number in widths.items()},
        removed_at={path: np.zeros(number, dtype=np.int64) for path, number in widths.items()},
        of=options.of,
        asked=0.0,
        achieved=0.0,
        before=size,
        after=dict(size),
    )


METHODS = {"relevance": relevance, "none": none}
