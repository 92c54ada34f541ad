"""Faults of other tools that loralab works around, each shown on what is installed.

Nothing of loralab takes part: a finding is a few lines that anybody could have written,
and what came of them. One that a later version has mended is told as not seen.

    python -m benchmarks.findings               # all, some seconds
    python -m benchmarks.findings NAME [NAME …]
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Found:
    """What came of trying.

    Attributes:
        seen: Whether the fault is there; None where this machine cannot show it.
        told: What was measured.
    """

    seen: bool | None
    told: str


@dataclass(frozen=True)
class Finding:
    """A fault, and the lines that show it.

    Attributes:
        package: At fault.
        claim: What goes wrong, in a sentence.
        try_it: Shows it.
    """

    package: str
    claim: str
    try_it: Callable[[], Found]


def _nf4_rows() -> Found:
    functional: Any = import_module("bitsandbytes.functional")
    torch.manual_seed(0)
    weight = torch.randn(8, 96)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    found = functional.dequantize_4bit(codes, state)
    state.shape = torch.Size((1, weight.numel()))
    right = functional.dequantize_4bit(codes, state).view_as(weight)
    worse = (found - weight).norm() / weight.norm()
    usual = (right - weight).norm() / weight.norm()
    told = f"an 8 × 96 matrix comes back {worse:.1%} off; read as one row, {usual:.1%}"
    return Found(bool(worse > 1.05 * usual), told)


def _nf4_gradient() -> Found:
    library: Any = import_module("bitsandbytes")
    if not library.functional.has_avx512bf16():
        return Found(None, "this CPU has no AVX512-BF16, whose kernel it is")
    torch.manual_seed(0)
    layer = library.nn.Linear4bit(
        64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    layer.load_state_dict({"weight": torch.randn(64, 64)})
    layer.to("cpu")
    gradients = []
    for _ in ("before an evaluation", "after it"):
        x = torch.randn(4, 64, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning is all that tells of it
            layer.train()(x).sum().backward()
        gradients.append("none" if x.grad is None else f"{x.grad.norm():.3g}")
        with torch.no_grad():
            layer.eval()(torch.randn(1, 64))
    told = "norm of the input's gradient: {}; after an evaluation: {}"
    return Found(gradients[1] == "none", told.format(*gradients))


def _tuned(model: nn.Module, **options: Any) -> Any:
    """Return a model under PEFT, with every warning an error."""
    peft: Any = import_module("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = peft.LoraConfig(r=4, target_modules=["0"], **options)
        return peft.get_peft_model(model, config)


def _qalora_ignored() -> Found:
    model = _tuned(
        nn.Sequential(nn.Linear(64, 32)), use_qalora=True, qalora_group_size=16
    )
    (shape,) = (p.shape for n, p in model.named_parameters() if "lora_A" in n)
    told = f"A of a layer of 64 inputs in groups of 16 has {shape[1]} columns, not 4"
    return Found(shape[1] == 64, f"{told}, and nothing was said")


def _ranknum_trained() -> Found:
    peft: Any = import_module("peft")
    model = nn.Sequential(nn.Linear(64, 32)).to(torch.bfloat16)
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, target_modules=["0"]
    )
    tuned = peft.get_peft_model(model, config)
    trained = {n: p.requires_grad for n, p in tuned.named_parameters()}
    (seen,) = (value for name, value in trained.items() if "ranknum" in name)
    saved = any("ranknum" in n for n in peft.get_peft_model_state_dict(tuned))
    told = f"on a bf16 base `ranknum`, a divisor of the scale, is trained: {seen}"
    return Found(seen and not saved, f"{told}; saved: {saved}")


def _end_masked() -> Found:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"hello": 0, "</s>": 1}, unk_token="</s>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>"
    )
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    labels = collate([{"input_ids": [0, 0, 1]}])["labels"][0].tolist()
    told = f"tokens 0 0 1, of which 1 ends the text, get the labels {labels}"
    return Found(labels[-1] == -100, told)


def _pattern_scale() -> Found:
    model = _tuned(
        nn.Sequential(nn.Linear(64, 32)), lora_alpha=8, rank_pattern={"0": 16}
    )
    layer = model.get_submodule("base_model.model.0")
    scale = layer.scaling["default"]
    told = f"alpha 8 at rank 4 is a scale of 2; rank_pattern 16 makes it {scale:g}"
    return Found(scale != 2, told)


FINDINGS = {
    "nf4-rows": Finding(
        "bitsandbytes",
        "NF4 weights whose rows are no multiple of 64 are dequantized wrongly on a CPU",
        _nf4_rows,
    ),
    "nf4-gradient": Finding(
        "bitsandbytes",
        "an NF4 layer has no gradient on a CPU once it was evaluated",
        _nf4_gradient,
    ),
    "qalora-ignored": Finding(
        "peft", "`use_qalora` is ignored on a layer that is not GPTQ's", _qalora_ignored
    ),
    "adalora-ranknum": Finding(
        "peft",
        "AdaLoRA trains a constant where the base is in bf16, and does not save it",
        _ranknum_trained,
    ),
    "rank-pattern": Finding(
        "peft",
        "`rank_pattern` without `alpha_pattern` changes a module's scale",
        _pattern_scale,
    ),
    "end-masked": Finding(
        "transformers",
        "the language-modeling collator masks the end token where it pads too",
        _end_masked,
    ),
}


def main(names: list[str]) -> int:
    """Print what each finding shows here; return 2 for a name that there is not."""
    unknown = [name for name in names if name not in FINDINGS]
    if unknown:
        print(f"no finding {', '.join(unknown)}; known: {', '.join(FINDINGS)}")
        return 2
    words = {True: "seen", False: "not seen", None: "cannot be shown here"}
    for name in names or FINDINGS:
        one = FINDINGS[name]
        found = one.try_it()
        print(f"{name}: {one.claim}")
        print(f"  {one.package} {version(one.package)}: {words[found.seen]}")
        print(f"  {found.told}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
