"""From an adapter to one small file that somebody else can check, unpack and ask.

    python examples/quantize_and_deploy.py

The adapter is merged into the float base, then stored in 8 bits; bytes are predicted
and measured, and a certificate compares the artefact with what it was made of. For ONNX
Runtime say ``onnx-int8`` (pip install 'loralab[onnx]'); nothing else changes.
"""

import shutil
from pathlib import Path

import loralab
from loralab.publishing.archive import extract

FORMAT = "affine-int8"
QUICK = [
    "data.max_rows={train: 192, validation: 32, test: 96}",
    "training.max_steps=6",
]  # leave them out to train on all rows


def main() -> None:
    """Train, quantize, publish as an archive, unpack it elsewhere, and ask."""
    run = loralab.train(loralab.compose("sms-spam", ["peft.params.rank=4", *QUICK]))
    storage = loralab.StorageConfig(name=FORMAT)
    stored = loralab.quantize(run, storage, rows=32)  # rows of the certificate
    made = stored.read()["artefact"]
    print(f"{made['bytes']['measured']:,} bytes, {100 * made['of_fp16']:.0f} % of fp16")
    print(f"of the adapter {100 * made['survival']['kept']:.1f} % survived")
    print(f"the certificate {'passed' if stored.read()['parity'] else 'failed'}")
    target = loralab.target_config("archive", {"path": "runs/spam.zip"})
    receipt = loralab.publish(stored, target)
    print(f"{len(receipt['files'])} files in {receipt['destination']}")
    shutil.rmtree("runs/deployed", ignore_errors=True)  # of an earlier call
    extract(Path("runs/spam.zip"), Path("runs/deployed"))
    ask = loralab.InferencePipeline.from_run("runs/deployed")
    print(ask(["WINNER! You have won a prize. Call 09061234567 to claim"])[0])


if __name__ == "__main__":
    main()
