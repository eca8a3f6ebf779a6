"""The rule by which `auto` chooses who embeds: the cheapest on time and within the cost; what is free wins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.spec import openai_spec
from pipeline.errors import InvalidRequest
from pipeline.ledger.budgets import TOLERANCE
from pipeline.routing import Situation, check, decide, has_batch_api, served_name
from pipeline.settings import OpenAISettings, Price

HOUR, DAY = 3600.0, 86_400.0

# A hundred million tokens of a model that OpenAI alone has: $2 online in 100 minutes, $1 by the Batch API in a day.
OPENAI = Situation(
    tokens=100_000_000, price=Price(online=0.02, batch=0.01), online_seconds=6000.0, batch_seconds=DAY + 1800
)
# The same of a model that is here too, where it takes ten hours.
BOTH = replace(OPENAI, local_seconds=10 * HOUR)
# A model that is here alone.
LOCAL = replace(BOTH, online_seconds=None, batch_seconds=None)
# A server without the Batch API.
ONLINE = replace(OPENAI, batch_seconds=None)

TABLE = {
    "without a deadline the Batch API": (OPENAI, "openai_batch", True, True),
    "with time enough the Batch API": (replace(OPENAI, seconds_left=2 * DAY), "openai_batch", True, True),
    "to the second": (replace(OPENAI, seconds_left=DAY + 1800), "openai_batch", True, True),
    "a second less is online": (replace(OPENAI, seconds_left=DAY + 1799), "openai", True, True),
    "within hours online": (replace(OPENAI, seconds_left=3 * HOUR), "openai", True, True),
    "sooner than anything: the soonest": (replace(OPENAI, seconds_left=60), "openai", False, True),
    "late already: the soonest": (replace(OPENAI, seconds_left=-HOUR), "openai", False, True),
    "online is too dear: the Batch API, late": (
        replace(OPENAI, seconds_left=3 * HOUR, cost_left=1.5),
        "openai_batch",
        False,
        True,
    ),
    "both are too dear: the cheapest, for the budget to stop": (
        replace(OPENAI, cost_left=0.5),
        "openai_batch",
        True,
        False,
    ),
    "both are too dear, and no Batch API": (replace(ONLINE, cost_left=0.5), "openai", True, False),
    "exactly what is left is within it": (replace(ONLINE, cost_left=2.0), "openai", True, True),
    "a budget that is overdrawn": (replace(OPENAI, cost_left=-1.0), "openai_batch", True, False),
    "no Batch API: online": (ONLINE, "openai", True, True),
    "the only way, however long": (replace(LOCAL, local_seconds=30 * DAY), "local", False, True),
    "here in time: free": (replace(BOTH, seconds_left=11 * HOUR), "local", True, True),
    "not here in time: online": (replace(BOTH, seconds_left=9 * HOUR), "openai", True, True),
    "not here in time, but by the Batch API": (
        replace(BOTH, local_seconds=3 * DAY, seconds_left=2 * DAY),
        "openai_batch",
        True,
        True,
    ),
    "without a deadline not longer than is said": (BOTH, "openai_batch", True, True),
    "without a deadline as long as is said": (replace(BOTH, local_seconds_most=10 * HOUR), "local", True, True),
    "nothing may be spent: here, be it late": (replace(BOTH, seconds_left=HOUR, cost_left=0.0), "local", False, True),
    "late and too dear: here": (replace(BOTH, seconds_left=-HOUR, cost_left=0.0), "local", False, True),
    "a server that costs nothing": (replace(ONLINE, price=Price(), cost_left=0.0), "openai", True, True),
    "where both are free: here": (replace(ONLINE, price=Price(), local_seconds=60.0), "local", True, True),
    "nothing to embed": (replace(OPENAI, tokens=0, cost_left=0.0), "openai_batch", True, True),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_choice_in_every_situation(name: str) -> None:
    situation, provider, on_time, within_cost = TABLE[name]

    route = decide(situation)

    assert (route.provider, route.on_time, route.within_cost) == (provider, on_time, within_cost)


def test_the_reason_says_what_it_costs_how_long_there_is_and_why_not_the_others() -> None:
    assert decide(OPENAI).reason == "the Batch API, $1.00; online would cost $2.00"
    assert decide(replace(OPENAI, seconds_left=3 * HOUR)).reason == (
        "online, $2.00, about 1 h 40 min (3 h 0 min left); the Batch API takes up to 24 h 30 min"
    )
    assert decide(replace(BOTH, seconds_left=11 * HOUR)).reason == (
        "local, free, about 10 h 0 min (11 h 0 min left); the Batch API takes up to 24 h 30 min; "
        "online would cost $2.00"
    )
    assert decide(replace(LOCAL, local_seconds=60.0)).reason == "local: the only way for this collection, free"


def test_the_reason_says_that_it_will_be_late_or_that_nothing_may_be_spent() -> None:
    late = decide(replace(OPENAI, seconds_left=3 * HOUR, cost_left=1.5)).reason
    assert late == (
        "it will be late: the Batch API, $1.00 (3 h 0 min left); online would cost $2.00, more than may be spent"
    )
    over = decide(replace(OPENAI, seconds_left=-HOUR, cost_left=0.5)).reason
    assert over == "the Batch API, $1.00 (needed 60 min ago); nothing is within the $0.50 that may still be spent"


SECONDS = st.none() | st.floats(0.0, 40 * DAY)
PRICES = st.builds(Price, online=st.floats(0.0, 1.0), batch=st.floats(0.0, 1.0))
SITUATIONS = st.builds(
    Situation,
    tokens=st.integers(0, 10**10),
    price=PRICES | st.just(Price(online=0.02, batch=0.01)),
    seconds_left=st.none() | st.floats(-DAY, 40 * DAY),
    cost_left=st.just(math.inf) | st.floats(-10.0, 1000.0),
    local_seconds=SECONDS,
    online_seconds=SECONDS,
    batch_seconds=SECONDS,
    local_seconds_most=st.floats(0.0, DAY),
).filter(lambda situation: bool(situation.possible()))


@given(SITUATIONS)
def test_nothing_is_chosen_over_the_cost_that_could_be_within_it(situation: Situation) -> None:
    route = decide(situation)

    cost = situation.cost(route.provider)
    assert route.within_cost == (cost <= max(0.0, situation.cost_left) + TOLERANCE)
    if not route.within_cost:
        assert all(situation.cost(other) > max(0.0, situation.cost_left) for other in situation.possible())
        assert cost == min(situation.cost(other) for other in situation.possible())


@given(SITUATIONS)
def test_nothing_is_late_where_something_on_time_is_within_the_cost(situation: Situation) -> None:
    route = decide(situation)

    good = [one for one in situation.possible() if situation.on_time(one) and situation.within_cost(one)]
    if good:
        assert route.on_time
        assert route.within_cost
        assert situation.cost(route.provider) == min(situation.cost(one) for one in good)
    elif route.within_cost:
        # Late at any rate: then as little as can be paid for
        affordable = [one for one in situation.possible() if situation.within_cost(one)]
        seconds = [situation.seconds(one) for one in affordable]
        assert situation.seconds(route.provider) == min(one for one in seconds if one is not None)


@given(SITUATIONS)
def test_what_is_free_and_on_time_wins(situation: Situation) -> None:
    free = [one for one in situation.possible() if situation.on_time(one) and situation.cost(one) == 0]
    if free:
        route = decide(situation)
        assert situation.cost(route.provider) == 0
        assert route.on_time
    if situation.local_seconds is not None and situation.on_time("local"):
        assert decide(situation).provider == "local"


@given(SITUATIONS, st.floats(0.0, 40 * DAY))
def test_more_time_never_makes_it_later_or_dearer_where_it_was_on_time(situation: Situation, more: float) -> None:
    before = decide(situation)
    if situation.seconds_left is None or not (before.on_time and before.within_cost):
        return

    after = replace(situation, seconds_left=situation.seconds_left + more)

    assert decide(after).on_time
    assert situation.cost(decide(after).provider) <= situation.cost(before.provider)


@given(SITUATIONS)
def test_every_reason_is_told_in_words_and_names_what_was_chosen(situation: Situation) -> None:
    route = decide(situation)
    names = {"local": "local", "openai": "online", "openai_batch": "the Batch API"}
    assert route.reason.removeprefix("it will be late: ").startswith(names[route.provider])
    assert "nan" not in route.reason
    assert "{" not in route.reason


def test_a_situation_in_which_nothing_can_embed_is_no_situation() -> None:
    with pytest.raises(ValueError, match="nothing can embed"):
        decide(Situation(tokens=1, price=Price()))


# -- who can embed at all ----------------------------------------------------------------------------------------------

LOCAL_SPEC = ModelSpec("all-MiniLM-L6-v2", "local", 384, 256, "mean", True, "float32", "abc")
OWN = OpenAISettings()
OPENAI_SPEC = openai_spec(OWN)
ELSEWHERE = OpenAISettings(base_url="http://embeddings.lan:8000/v1", same_as={"minilm": "all-MiniLM-L6-v2"})


def test_openai_has_the_batch_api_and_another_server_where_the_settings_say_so() -> None:
    assert has_batch_api(OWN)
    assert has_batch_api(OpenAISettings(base_url="https://API.OpenAI.com/v1/"))
    assert not has_batch_api(OWN.model_copy(update={"batch": "off"}))
    assert not has_batch_api(ELSEWHERE)
    assert has_batch_api(ELSEWHERE.model_copy(update={"batch": "on"}))
    assert not has_batch_api(OpenAISettings(base_url="https://api.openai.com.evil.example/v1"))


def test_a_local_model_is_served_under_the_name_that_the_settings_give_it() -> None:
    assert served_name(LOCAL_SPEC, ELSEWHERE) == "minilm"
    assert served_name(LOCAL_SPEC, OWN) is None
    assert served_name(OPENAI_SPEC, OWN) == "text-embedding-3-small"


@pytest.mark.parametrize(
    ("provider", "spec", "settings", "told"),
    [
        ("local", OPENAI_SPEC, OWN, r"text-embedding-3-small is a model of OpenAI's.*use openai, openai_batch or auto"),
        ("openai", LOCAL_SPEC, OWN, "all-MiniLM-L6-v2 is a model of this machine.*MILLRACE_OPENAI__SAME_AS"),
        ("openai_batch", LOCAL_SPEC, OWN, "provider openai_batch cannot embed for this collection"),
        ("openai_batch", LOCAL_SPEC, ELSEWHERE, "http://embeddings.lan:8000/v1 has no Batch API.*BATCH=auto"),
        ("openai_batch", OPENAI_SPEC, OWN.model_copy(update={"batch": "off"}), "no Batch API.*BATCH=off"),
        ("auto", OPENAI_SPEC, ELSEWHERE, "was made with .* of https://api.openai.com/v1; MILLRACE_OPENAI__BASE_URL is"),
    ],
)
def test_a_provider_that_cannot_embed_for_a_collection_is_refused_by_name(
    provider: str, spec: ModelSpec, settings: OpenAISettings, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check(provider, spec, settings)


@pytest.mark.parametrize(
    ("provider", "spec", "settings"),
    [
        ("local", LOCAL_SPEC, OWN),
        ("auto", LOCAL_SPEC, OWN),
        ("auto", OPENAI_SPEC, OWN),
        ("openai", OPENAI_SPEC, OWN),
        ("openai_batch", OPENAI_SPEC, OWN),
        ("openai", LOCAL_SPEC, ELSEWHERE),
        ("openai_batch", LOCAL_SPEC, ELSEWHERE.model_copy(update={"batch": "on"})),
    ],
)
def test_a_provider_that_can_embed_for_a_collection_is_taken(
    provider: str, spec: ModelSpec, settings: OpenAISettings
) -> None:
    check(provider, spec, settings)
