"""A recipe's [trim] section as arguments of ``pipeline.trimming.schedule.trim``.

    trimmed(model, build=, input_shape=, batches=, finetune=, options=, board=, seed=)

``options`` is the section; ``batches`` may give labels, which criteria that follow gradients need; ``board`` is a
``pipeline.trimming.hardware.Hardware`` where ``on_hardware(options)``, else None.
"""

import numpy as np

from pipeline.trimming import criteria, schedule
from pipeline.trimming.count import count
from pipeline.trimming.groups import CONVOLUTIONS

#: What [trim].of calls the measures that have another name in the cost model.
OF = {"bram": "bram18"}


def trimmed(model, *, build, input_shape, batches, finetune, options, board=None, seed=0) -> schedule.Result:
    """Trim a trained float network as the section asks: see ``criteria``, ``moves`` and ``schedule``."""
    if options.method == "none":
        return none(model, input_shape, options)
    return schedule.trim(
        model,
        build=build,
        input_shape=input_shape,
        batches=batches,
        finetune=finetune,
        criterion=criterion(options),
        ratio=options.ratio,
        of=OF.get(options.of, options.of),
        steps=options.steps,
        min_filters=options.min_filters,
        allocation=options.allocation,
        granularity=options.granularity,
        cluster_size=options.cluster_size,
        cluster_order=options.cluster_order,
        rank_weighted=options.rank_weighted,
        channel_multiple=options.channel_multiple,
        schedule=options.schedule,
        widths=dict(options.widths) if options.allocation == "widths" else None,
        board=board,
        seed=seed,
    )


def criterion(options) -> str:
    """The name of the section's criterion in ``criteria.CRITERIA``."""
    name = options.method
    return f"relevance_{options.statistic}" if name == "relevance" else name


def on_hardware(options) -> bool:
    """Whether the section asks for anything that only a board's figures tell."""
    auto = options.granularity == "cluster" and options.cluster_size == "auto"
    return options.method != "none" and (OF.get(options.of, options.of) in (*schedule.PREDICTED, "fit") or auto)


def convolutions(model) -> dict:
    """{path: convolution} of a network."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}


def needs_labels(options) -> bool:
    """Whether the section's criterion follows gradients of the loss."""
    if options.method == "none":
        return False
    return bool({criteria.GATE, criteria.NORM_GATE} & set(criteria.needed(criterion(options))))


def none(model, input_shape, options) -> schedule.Result:
    """Leaves the network whole. Nothing is traced or scored, so that any network passes."""
    counted = count(model, input_shape)
    widths = {name: module.out_channels for name, module in convolutions(model).items()}
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
