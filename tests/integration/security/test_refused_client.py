"""A client whose cloud does not know it: the generation ends, can be resumed, and nothing shows the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chaperone_common.clock import MonotonicClock
from chaperone_common.session import Failed
from cloud_supervisor.security.authentication import Authenticator
from cloud_supervisor.security.tokens import TokenFile
from edge_client import CloudSettings, EdgeClient, EdgeConfig, Mode, Unauthenticated
from edge_client.apps.cli.main import main
from tests.support.security.servers import guarded, write

PROMPT = "the list of a number is"


@asynccontextmanager
async def refusing(tmp_path: Path) -> AsyncIterator[str]:
    tokens_file = tmp_path / "tokens.json"
    TokenFile.create(tokens_file, "acme")
    async with guarded(Authenticator(tokens_file=tokens_file, clock=MonotonicClock())) as (_, address):
        yield address


@pytest.mark.parametrize("mode", ["exact", "gated", "cloud"])
def test_a_refusal_ends_the_generation_and_is_never_a_loss(tiny_pair: Path, tmp_path: Path, mode: str) -> None:
    async def run() -> None:
        async with refusing(tmp_path) as address:
            config = EdgeConfig(pair="tiny", mode=Mode(mode), cloud=CloudSettings(address=address, on_loss="continue"))
            async with EdgeClient(config) as client:
                events = [event async for event in client.stream(PROMPT, max_new_tokens=4, committed_token_ids=(5,))]
                (failed,) = events
                assert isinstance(failed, Failed)
                assert isinstance(failed.error, Unauthenticated)
                assert failed.error.message.endswith("authorization: no token; give --token-file or CHAPERONE_TOKEN")
                assert failed.error.partial is not None
                assert failed.error.partial.token_ids == (5,)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--cloud", "10.0.0.1:1", "--config", "tls: false"],
            "cloud.tls: false, but '10.0.0.1:1' is not on this machine",
        ),
        (["--insecure", "--tls-ca", "ca.pem"], "cloud.insecure: it allows plain text, and cloud.ca_file asks for TLS"),
        (["--tls-cert", "cert.pem"], "cloud.key_file: it is missing, and belongs to cloud.cert_file"),
        (["--tls-key", "key.pem"], "cloud.cert_file: it is missing, and belongs to cloud.key_file"),
        (["--tls-ca", "none.pem"], "cloud.ca_file: {}/none.pem: cannot be read: No such file or directory"),
        (["--token-file", "none"], "cloud.token_file: {}/none: cannot be read: No such file or directory"),
        (["--token-file", "two-tokens"], "cloud.token_file: {}/two-tokens: it is no token"),
    ],
)
def test_flags_that_cannot_work_are_refused_by_their_setting(
    tiny_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    write(tmp_path / "two-tokens", "secret-one secret-two")
    files = {"ca.pem", "cert.pem", "key.pem", "none.pem", "none", "two-tokens"}
    given = [str(tmp_path / flag) if flag in files else flag for flag in flags]
    if "--config" in given:
        place = given.index("--config") + 1
        given[place] = str(write(tmp_path / "edge.yaml", f"cloud:\n  {given[place]}\n"))
    assert main(["generate", "--pair", "tiny", *given, PROMPT]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words.format(tmp_path) in err
    assert "secret" not in err
