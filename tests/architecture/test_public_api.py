"""Public names are pinned: adding or removing one is a decision, made here."""

from __future__ import annotations

import edge_client

PUBLIC = """
Audited Cancelled ChaperoneError CloudLost CloudSettings Committed ConfigError Decision DeviceSettings Drafted
EdgeClient EdgeConfig Event Failed FinishReason Finished GateSettings Generation GenerationParams GenerationRequest
GenerationSettings GenerationStats InvalidRequest Mode OnDeviation Origin PlannerSettings Promises Prompt PromptInput
Retracted SamplingParams Signal SyncEdgeClient Totals
"""


def test_public_names() -> None:
    assert sorted(edge_client.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(edge_client, name) for name in edge_client.__all__)
