"""Rank strategies by name, one file each: how much rank each module deserves.

``@register("rank strategy", name, Params, **facts)`` holds a function (params, modules,
statistics, seed) -> one value a module, which `loralab.adapters.allocation` makes ranks
of. It must not depend on the order of modules. Facts:

``needs``  ``""``, or which statistics of calibration rows it reads: ``gradient``,
           ``eva``, ``fisher``. ``of``: it is a control, has the param ``of``, and its
           statistics are the weights of the strategy that this names.
``gives``  ``weights`` (the default): numbers of at least 0, of any scale; ranks are
           proportional to them. ``gains``: for each module what each rank unit is
           worth, falling. ``ranks``: they are fixed, never changed to fit a budget.
``cap``    Of gains: the param that bounds a rank, in multiples of the uniform one.
"""
