"""Two adapters of one base become one, which answers as either task.

    python examples/merge_adapters.py

The merge is exact unless `export` is given a rank; no base model is read. Its folder
can be continued (`add`) and undone (`undo`), bit for bit; what is written is PEFT's.
"""

import shutil

import loralab

QUICK = [
    "data.max_rows={train: 192, validation: 32, test: 96}",
    "training.max_steps=6",
]  # leave them out to train on all rows


def main() -> None:
    """Train two adapters, compare and merge them, measure the merge, and ask it."""
    runs = []
    for seed, name in enumerate(("sms-spam", "trec-6")):  # not the same A in both
        changes = ["peft.params.rank=4", *QUICK, f"training.seed={seed}"]
        runs.append(loralab.train(loralab.compose(name, changes)))
    shutil.rmtree("runs/merge", ignore_errors=True)  # of an earlier call
    state = loralab.merge([run.path for run in runs], "opcm", "runs/merge")
    for verdict in loralab.MergingAnalyzer(state.sources).report().verdicts:
        print(verdict.sentence)
    written = state.export("runs/both")
    print(f"{state.task_count} adapters in {written.folder}, λ {state.lambda_t:.3f}")
    for run in runs:
        found = loralab.evaluate(run, merged=written.folder)["metrics"]["accuracy"]
        print(f"{run.config.name}: merged {found['adapter']['value']:.3f}", end=", ")
        alone = run.evaluations()["test"]["metrics"]["accuracy"]["adapter"]
        print(f"alone {alone['value']:.3f}")
    for run, text in zip(runs, ["Call now, you won!", "Who is she?"], strict=True):
        ask = loralab.InferencePipeline.from_run(written.folder, head=run.id)
        print(ask([text])[0]["label"], text)


if __name__ == "__main__":
    main()
