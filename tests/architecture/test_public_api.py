"""Public names are pinned: adding or removing one is a decision, made here."""

from __future__ import annotations

import edge_client

PUBLIC = """
Audited ChaperoneError Committed Drafted EdgeClient EdgeConfig Event Failed FinishReason Finished Generation
GenerationParams GenerationRequest GenerationStats Mode Origin PromptInput Retracted SamplingParams Signal
SyncEdgeClient
"""


def test_public_names() -> None:
    assert sorted(edge_client.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(edge_client, name) for name in edge_client.__all__)
