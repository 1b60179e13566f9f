"""Names of the files in a tar or folder that is uploaded or downloaded.

The SDK and the console keep copies, which a test compares with these.
"""

from __future__ import annotations

ARTIFACT = "prefix.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"

DEFINITION = "foreword.json"
GOLDEN = "golden.jsonl"
EVALUATION = "evaluation.json"

SIDECARS = frozenset((DEFINITION, GOLDEN, EVALUATION))
"""Optional files next to the prefix."""
KNOWN = frozenset((ARTIFACT, PEFT_CONFIG, PEFT_WEIGHTS)) | SIDECARS
