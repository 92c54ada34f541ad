"""A small language model on a CPU in every engine: prefill, decode, first token, bytes.

SmolLM2 alone, in each format and engine that is installed, one run, interleaved: every
engine answers the same token ids in each round, on as many threads. Reported are
medians with distribution-free 95 % intervals, and ratios of decode to the best
llama.cpp and to transformers. (Its weights came to us on the Q4_1 grid, group 32, so
nothing is said of quality here.)

    python benchmarks/decoding.py            # some 10 minutes
    python benchmarks/decoding.py 512 64     # prompt tokens, new tokens
    python benchmarks/decoding.py ratios     # from the results that are kept
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loralab import compose
from loralab.config import StorageConfig
from loralab.config.named import named
from loralab.evaluation.side_by_side import latency, open_all
from loralab.export.artefact import quantize
from loralab.runs import Run
from loralab.runs.environment import environment
from loralab.runs.files import write_json

OUT = Path(__file__).parent / "results" / "decoding.json"

FORMS: dict[str, tuple[str, list[str]]] = {
    "transformers fp32": ("safetensors", ["dtype=fp32"]),
    "transformers bf16": ("safetensors", ["dtype=bf16"]),
    "bitsandbytes NF4": ("nf4", []),
    "onnx fp32": ("onnx-fp32", []),
    "onnx int4 g32": ("onnx-int4", ["block_size=32"]),
    "onnx int4 g64": ("onnx-int4", ["block_size=64"]),
    "onnx int4 g128": ("onnx-int4", ["block_size=128"]),
    "llama.cpp F16": ("gguf", ["type=f16"]),
    "llama.cpp Q8_0": ("gguf", ["type=q8_0"]),
    "llama.cpp Q4_0": ("gguf", ["type=q4_0"]),
    "llama.cpp Q4_1": ("gguf", ["type=q4_1"]),
}
FLOAT_OF = {"onnx": "onnx fp32", "llama.cpp": "llama.cpp F16"}
"""Engine -> its base in float."""
BEST_OF = ("llama.cpp Q4_0", "llama.cpp Q4_1")


def made(folder: Path) -> dict[str, Run]:
    """Return the base in every form whose engine is here."""
    experiment = compose("chatterbot", [])
    found = {}
    for name, (form, params) in FORMS.items():
        if form == "gguf" and find_spec("llama_cpp") is None:
            print(f"{name}: llama-cpp-python is not installed")
            continue
        storage = named(StorageConfig, form, params)
        found[name] = quantize(experiment, storage, runs_dir=folder, rows=0)
        size = found[name].read()["artefact"]["bytes"]["measured"]
        print(f"{name}: {size:,} bytes", flush=True)
    return found


def measured(runs: dict[str, Run], prompt: int, new: int) -> dict[str, Any]:
    """Return the timing of all of them, under their names."""
    names = {run.id: name for name, run in runs.items()}
    models = open_all(list(runs.values()))
    first = next(iter(runs.values()))

    def tell(what: str, done: int, of: int) -> None:
        print(f"{what}: round {done} of {of}", flush=True)

    found = latency(
        models, first, rounds=10, prompt_tokens=prompt, new_tokens=new, tell=tell
    )
    found["engines"] = {names[k]: v for k, v in found["engines"].items()}
    found["batches"] = {
        batch: {names[k]: v for k, v in values.items()}
        for batch, values in found["batches"].items()
    }
    return found


def ratios(timed: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return decode rates over transformers bf16, an engine's float, llama.cpp."""
    found: dict[str, dict[str, float]] = {}
    for batch, values in timed["batches"].items():
        rate = {k: v["decode_tokens_per_second"]["value"] for k, v in values.items()}
        best = [rate[name] for name in BEST_OF if name in rate]
        over = {"transformers bf16": rate["transformers bf16"]}
        if best:
            over["best llama.cpp"] = max(best)
        found[batch] = {
            f"decode, {name} / {other}": one / value
            for other, value in over.items()
            for name, one in rate.items()
        }
        found[batch] |= {
            f"decode, {name} / {base}": rate[name] / rate[base]
            for engine, base in FLOAT_OF.items()
            for name in rate
            if name.startswith(engine) and base in rate and name != base
        }
    return found


def main() -> None:
    """Measure, print and keep; or work the ratios out anew."""
    if sys.argv[1:] == ["ratios"]:
        kept = json.loads(OUT.read_text(encoding="utf-8"))
        write_json(OUT, {**kept, "ratios": ratios(kept)})
        return
    prompt, new = (int(x) for x in sys.argv[1:3]) if len(sys.argv) > 2 else (128, 64)
    with tempfile.TemporaryDirectory() as folder:
        runs = made(Path(folder))
        sizes = {k: r.read()["artefact"]["bytes"] for k, r in runs.items()}
        timed = measured(runs, prompt, new)
    found = {
        "bytes": sizes,
        **timed,
        "ratios": ratios(timed),
        "environment": environment(),
    }
    print(json.dumps(found["ratios"], indent=1))
    write_json(OUT, found)


if __name__ == "__main__":
    main()
