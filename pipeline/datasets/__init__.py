"""Where pictures come from: a file per data set, each with ``SPEC`` and ``load(recipe, *, progress)``."""
