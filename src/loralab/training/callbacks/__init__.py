"""Callbacks chosen by name: one file each; a function (params, run) to a callback.

A callback is a transformers ``TrainerCallback``, a subscriber of the run's events, or
both. What it may have beside the trainer's hooks::

    on_event(event)   told of every event of the run: plan, log, validation,
                      checkpoint, evaluated, complete; the last two come after the
                      trainer has ended
    bind(log)         given the `EventLog` at the start, to emit events itself
    close()           called at the end, also after an error

``@register("callback", name, Params, check=f)``: ``f(params)`` raises where the
callback cannot work here (a package is missing), before anything is trained.
"""
