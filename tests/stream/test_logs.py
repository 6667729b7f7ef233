"""The log: repeats are counted, tokens stay out."""

from __future__ import annotations

import io
import logging

import pytest

from stream.logs import EVERY_S, Repeats, StderrHandler


@pytest.fixture
def log():
    """(a logger, its lines so far, its clock) as main() sets one up."""
    clock, written = [0.0], io.StringIO()
    handler = StderrHandler(clock=lambda: clock[0])
    handler.setStream(written)
    logger = logging.Logger("stream.somewhere")
    logger.addHandler(handler)
    return logger, lambda: written.getvalue().splitlines(), clock


def test_a_line_that_repeats_is_counted(log):
    logger, lines, clock = log
    for _ in range(1000):
        logger.warning("Stream %s is gone.", "one")
    logger.warning("Stream %s is gone.", "two")
    assert lines() == ["WARNING stream.somewhere: Stream one is gone.", "WARNING stream.somewhere: Stream two is gone."]
    clock[0] = EVERY_S
    logger.error("Something else.")
    assert lines()[2:] == [
        "WARNING stream.somewhere: Stream one is gone. (said 999 times more)",
        "ERROR stream.somewhere: Something else.",
    ]
    logger.warning("Stream %s is gone.", "one")
    assert lines()[4:] == ["WARNING stream.somewhere: Stream one is gone."]


def test_a_line_whose_arguments_do_not_fit_fails_nobody(log, capsys):
    log[0].warning("%d streams", "no")
    assert "Logging error" in capsys.readouterr().err


def test_what_was_counted_is_told_at_the_end(log):
    logger, lines, _ = log
    logger.warning("Gone.")
    logger.warning("Gone.")
    logger.handlers[0].close()
    assert lines()[1:] == ["WARNING stream.somewhere: Gone. (said 1 time more)"]


def test_the_same_words_for_another_mistake_are_written(log):
    logger, lines, _ = log

    def fail(error):
        try:
            raise error
        except Exception:
            logger.exception("It failed.")

    def fail_elsewhere(error):
        try:
            raise error
        except Exception:
            logger.exception("It failed.")

    for _ in range(3):
        fail(ValueError("one"))
        fail(TypeError("two"))
        fail_elsewhere(ValueError("three"))
    assert [line for line in lines() if line.startswith(("ValueError", "TypeError"))] == [
        "ValueError: one",
        "TypeError: two",
        "ValueError: three",
    ]


def test_kinds_that_never_end_take_no_memory():
    repeats = Repeats(max_kinds=8)
    for number in range(1000):
        assert repeats.over(0.0) == []
        assert repeats.is_new((number,), 0.0)
    assert [repeats.is_new((number,), 0.0) for number in (999, 992, 991)] == [False, False, True]


def test_a_counted_kind_that_is_pushed_out_is_told():
    repeats = Repeats(max_kinds=1)
    assert repeats.is_new(("one",), 0.0)
    assert not repeats.is_new(("one",), 0.0)
    assert repeats.over(0.0) == [(("one",), 1)]


@pytest.mark.parametrize(
    "text",
    [
        "GET /whip/a?token=s3cret HTTP/1.1",
        "GET /whip/a?x=1&token=s3cret&y=2 HTTP/1.1",
        "Authorization: Bearer s3cret",
        "{'AUTHORIZATION': 'bearer s3cret'}",
        "b'GET /?Token=s3cret\\r\\n'",
        "/login?next=%2Fview%2Fa%3Ftoken%3Ds3cret",
    ],
)
def test_tokens_stay_out(log, text):
    logger, lines, _ = log
    logger.warning("refused: %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("failed")
    assert "refused" in lines()[0]
    assert not any("s3cret" in line for line in lines())
