"""Sessions belong to tenants, and each tenant has quotas."""

from __future__ import annotations

import pytest

from chaperone_common.errors import Overloaded, PermissionDenied, PromptTooLong, QuotaExceeded
from chaperone_common.frames import Open, QuotaState
from chaperone_common.types import SamplingParams, SessionId
from cloud_supervisor.admission import Admission, PromptOverQuota, Rate, SessionKey
from cloud_supervisor.caller import Caller
from cloud_supervisor.config import LimitsConfig, QuotasConfig, TenantQuota
from cloud_supervisor.transfers.device_model import DeviceModel
from cloud_supervisor.transfers.transfers import Transfers
from tests.support.fakes.clock import ManualClock


def admit(
    entrance: Admission, session: SessionKey, prompt_tokens: int = 3, *, max_new_tokens: int = 5, committed: int = 0
) -> None:
    prompt, text = (1,) * prompt_tokens, (1,) * committed
    opening = Open(SessionId("s"), "", SamplingParams(), max_new_tokens, (), prompt, text)
    entrance.admit(session, opening, longest=prompt_tokens + max_new_tokens)


def key(tenant: str, number: int = 0) -> SessionKey:
    return SessionKey(tenant, SessionId(str(number)))


def admission(
    clock: ManualClock, *, capacity: int | None = None, limits: LimitsConfig | None = None, **tenants: TenantQuota
) -> Admission:
    return Admission(limits or LimitsConfig(), QuotasConfig(tenants=tenants), capacity, clock)


def test_a_rate_is_free_again_after_a_while() -> None:
    clock = ManualClock()
    rate = Rate(60, clock)
    assert rate.wait_s() == 0
    rate.take(90)
    assert rate.used == 90
    assert rate.wait_s() == pytest.approx(36)  # a debt of 30, and 6 that are free again
    clock.seconds += 36
    assert rate.wait_s() == 0
    assert rate.used == 54
    clock.seconds += 3600
    assert rate.used == 0


def test_a_tenant_at_its_limit_disturbs_no_other() -> None:
    entrance = admission(ManualClock(), a=TenantQuota(max_sessions=1))
    admit(entrance, key("a", 1))
    with pytest.raises(QuotaExceeded, match="quota: sessions: tenant 'a' may have 1, and as many are open") as refused:
        admit(entrance, key("a", 2))
    assert refused.value.quota == "sessions"
    assert refused.value.retry_after_ms == 1000
    admit(entrance, key("a", 1))  # opened again
    admit(entrance, key("b", 1))  # of the same id, and another tenant's
    assert entrance.sessions == 2
    entrance.release(key("a", 1))
    admit(entrance, key("a", 2))


def test_a_full_cloud_refuses_everybody() -> None:
    entrance = admission(ManualClock(), limits=LimitsConfig(max_sessions=2))
    admit(entrance, key("a"))
    assert not entrance.full
    admit(entrance, key("b"))
    assert entrance.full
    with pytest.raises(Overloaded, match="sessions: 2 are open, the limit is 2; try again later"):
        admit(entrance, key("c"))


def test_streams_begin_at_a_limited_rate() -> None:
    clock = ManualClock()
    entrance = admission(clock, a=TenantQuota(streams_per_minute=2))
    entrance.begin_stream("a")
    entrance.begin_stream("a")
    with pytest.raises(QuotaExceeded, match="streams_per_minute: tenant 'a' may have 2") as refused:
        entrance.begin_stream("a")
    entrance.begin_stream("b")
    assert refused.value.retry_after_ms is not None
    clock.seconds += refused.value.retry_after_ms / 1000
    entrance.begin_stream("a")


def test_work_is_charged_whether_or_not_it_helps() -> None:
    clock = ManualClock()
    entrance = admission(clock, a=TenantQuota(positions_per_minute=10))
    entrance.check_work("a")
    entrance.charge("a", 25)  # the last verification is not cut short
    with pytest.raises(QuotaExceeded, match="positions_per_minute"):
        entrance.check_work("a")
    entrance.check_work("b")
    clock.seconds += 95  # of a debt of 15 at 10 a minute
    entrance.check_work("a")


def test_a_text_that_never_fits_is_refused_for_good() -> None:
    entrance = admission(ManualClock(), capacity=10)
    with pytest.raises(PromptTooLong, match="prompt: 11 tokens do not fit into the cloud's cache for 10"):
        admit(entrance, key("a"), 8, committed=3)
    admit(entrance, key("a"), 10)


def test_open_texts_beyond_the_budget_are_refused_for_now() -> None:
    entrance = admission(ManualClock(), capacity=10, limits=LimitsConfig(kv_overcommit=1.5))
    admit(entrance, key("a"), 9)
    with pytest.raises(Overloaded, match="kv budget: the open texts hold 9 tokens, 7 more would pass 15"):
        admit(entrance, key("b"), 7)
    admit(entrance, key("b"), 6)
    entrance.grow(key("a"), 20)
    with pytest.raises(Overloaded, match="hold 26 tokens"):
        admit(entrance, key("c"), 1)


def test_the_longest_texts_of_a_tenant_are_bounded() -> None:
    entrance = admission(ManualClock(), a=TenantQuota(max_kv_tokens=20, max_prompt_tokens=9))
    with pytest.raises(PromptOverQuota, match="prompt: 10 tokens, tenant 'a' may send 9") as sent:
        admit(entrance, key("a"), 10)
    with pytest.raises(PromptOverQuota, match="it may grow to 21 tokens, tenant 'a' may hold 20") as held:
        admit(entrance, key("a"), 9, max_new_tokens=12)
    assert (sent.value.quota, held.value.quota) == ("prompt_tokens", "kv_tokens")
    admit(entrance, key("a", 1), 9, max_new_tokens=6)
    with pytest.raises(QuotaExceeded, match="kv_tokens: tenant 'a' may have 20, and as many are reserved"):
        admit(entrance, key("a", 2), 1, max_new_tokens=5)


def test_the_state_of_all_quotas_can_be_asked() -> None:
    entrance = admission(ManualClock(), a=TenantQuota(max_sessions=4, max_kv_tokens=100, max_prompt_tokens=9))
    entrance.begin_stream("a")
    admit(entrance, key("a"), 3, max_new_tokens=5)
    entrance.charge("a", 7)
    assert entrance.states("a") == (
        QuotaState("sessions", 4, 1),
        QuotaState("streams_per_minute", 6000, 1),
        QuotaState("positions_per_minute", 1_000_000, 7),
        QuotaState("transfers", 4, 0),
        QuotaState("transfer_mib_per_minute", 8192, 0),
        QuotaState("kv_tokens", 100, 8),
        QuotaState("prompt_tokens", 9, 0),
    )
    assert [state.name for state in entrance.states("b")] == [
        "sessions",
        "streams_per_minute",
        "positions_per_minute",
        "transfers",
        "transfer_mib_per_minute",
    ]


def test_a_tenant_has_the_default_where_its_own_quota_says_nothing() -> None:
    quotas = QuotasConfig(
        default=TenantQuota(max_sessions=5, max_kv_tokens=9), tenants={"a": TenantQuota(max_sessions=7)}
    )
    assert quotas.of("a") == TenantQuota(max_sessions=7, max_kv_tokens=9)
    assert quotas.of("b") == quotas.default


# --- Transfers of models ---------------------------------------------------------------------------------------------


def test_transfers_are_counted_by_tenant_and_in_total() -> None:
    entrance = admission(ManualClock(), limits=LimitsConfig(max_transfers=2), a=TenantQuota(max_transfers=1))
    entrance.begin_transfer("a")
    with pytest.raises(QuotaExceeded, match="quota: transfers: tenant 'a' may have 1, and as many are open") as refused:
        entrance.begin_transfer("a")
    assert (refused.value.quota, refused.value.retry_after_ms) == ("transfers", 1000)
    entrance.begin_transfer("b")
    with pytest.raises(Overloaded, match="transfers: 2 are open, the limit is 2; try again later"):
        entrance.begin_transfer("c")
    entrance.end_transfer("a")
    entrance.begin_transfer("c")


def test_transfers_that_are_refused_leave_the_tenant_its_streams() -> None:
    entrance = admission(ManualClock(), a=TenantQuota(max_transfers=1, streams_per_minute=3))
    transfers = Transfers(DeviceModel("tiny"), entrance, ManualClock(), max_transfer_s=1.0)
    caller = Caller("a", "somewhere")
    end = transfers.begin(caller)
    for _ in range(5):
        with pytest.raises(QuotaExceeded, match="quota: transfers"):
            transfers.begin(caller)
    end()
    assert QuotaState("streams_per_minute", 3, 1) in entrance.states("a")
    for _ in range(2):
        entrance.begin_stream("a")
    with pytest.raises(QuotaExceeded, match="quota: streams_per_minute"):
        transfers.begin(caller)
    assert QuotaState("transfers", 1, 0) in entrance.states("a"), "one that the rate refuses takes no place"


def test_bytes_of_models_are_a_rate_that_a_transfer_may_overdraw() -> None:
    clock = ManualClock()
    entrance = admission(clock, a=TenantQuota(transfer_mib_per_minute=60))
    entrance.begin_transfer("a")
    entrance.charge_transfer("a", 90 << 20)
    entrance.end_transfer("a")
    with pytest.raises(QuotaExceeded, match="transfer_mib_per_minute: tenant 'a' may have 60") as refused:
        entrance.begin_transfer("a")
    assert refused.value.retry_after_ms == 36_000  # a debt of 30 MiB, and 6 that are free again
    assert QuotaState("transfer_mib_per_minute", 60, 90) in entrance.states("a")
    entrance.begin_transfer("b")
    clock.seconds += 36
    entrance.begin_transfer("a")


def test_a_cloud_without_transfers_says_so_and_has_no_such_quotas() -> None:
    entrance = admission(ManualClock(), limits=LimitsConfig(max_transfers=0))
    with pytest.raises(PermissionDenied, match="transfers: this cloud sends no models"):
        entrance.begin_transfer("a")
    assert "transfers" not in {state.name for state in entrance.states("a")}
