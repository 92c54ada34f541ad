"""Feature extraction: mean-pooled text features, judged by a linear probe on them.

    h = mean over real tokens of the last hidden states,   logits = W h + b

The encoder has no head of its own: its output is the features (embeddings), which
`InferencePipeline.embed` returns; the probe says how well classes can be read off them
(Alain & Bengio 2016, arXiv:1610.01644). Columns are those of text classification.
"""

from __future__ import annotations

from loralab.data.tasks.text_classification import (
    TextClassification,
    TextClassificationParams,
)
from loralab.registry import register


@register("task", "feature-extraction", TextClassificationParams)
class FeatureExtraction(TextClassification):
    """Text classification by a probe on pooled features, which are the output."""

    head = "feature-extraction"
