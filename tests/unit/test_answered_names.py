"""What a server calls the model that it answers with: a change of it is told, once, and nothing else is."""

from __future__ import annotations

from threading import Thread

import pytest

from pipeline.embedding.openai.names import AnsweredNames
from pipeline.observe import recorder

WHERE, MODEL = "http://models.lan/v1", "minilm"


@pytest.fixture
def names() -> AnsweredNames:
    recorder.drain()
    return AnsweredNames()


def changes() -> float:
    return recorder.drain().counts.get(("openai_model_changes", ()), 0.0)


def test_whatever_a_server_calls_its_model_first_is_taken_for_granted(names: AnsweredNames) -> None:
    assert not any(names.heard(WHERE, MODEL, "online", name) for name in ("/models/minilm.gguf", "/models/minilm.gguf"))
    assert not names.heard(WHERE, MODEL, "batch", "minilm"), "the other way to ask may have another name"
    assert not names.heard("http://others.lan/v1", MODEL, "online", "minilm@2")
    assert not names.heard(WHERE, "e5", "online", "/models/e5.gguf")
    assert changes() == 0


@pytest.mark.parametrize("name", [None, "", "  ", 7, ["minilm"]])
def test_an_answer_without_a_name_says_nothing(names: AnsweredNames, name: object) -> None:
    names.heard(WHERE, MODEL, "online", "minilm")

    assert not names.heard(WHERE, MODEL, "online", name)


def test_a_change_is_told_once_with_both_names(names: AnsweredNames, caplog: pytest.LogCaptureFixture) -> None:
    told = [names.heard(WHERE, MODEL, "online", name) for name in ("v1", "v1", "v2", "v2", "v1", "v3", "v2")]

    assert told == [False, False, True, False, False, True, False]
    assert changes() == 2
    assert f"{WHERE} answers for {MODEL} as v2, and did as v1 before" in caplog.messages[0]
    assert len(caplog.messages) == 2


def test_a_server_with_a_new_name_for_each_answer_is_not_told_of_for_ever(names: AnsweredNames) -> None:
    for number in range(1000):
        names.heard(WHERE, MODEL, "online", f"minilm-{number}")

    assert changes() == 10


def test_threads_that_hear_the_first_name_together_take_it_for_no_change(names: AnsweredNames) -> None:
    threads = [Thread(target=names.heard, args=(WHERE, MODEL, "online", "minilm")) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert changes() == 0


def test_a_key_in_a_name_is_not_logged(names: AnsweredNames, caplog: pytest.LogCaptureFixture) -> None:
    names.heard(WHERE, MODEL, "online", "minilm")
    names.heard(WHERE, MODEL, "online", "minilm sk-abcdefghijklmnop")

    assert "sk-abcdefghijklmnop" not in caplog.text
