"""What `diagtool run --snapshot-on` understands, and when a threshold fires."""

from __future__ import annotations

import signal

import pytest

from diagtool.supervise.triggers import DEFAULT, MOST, BadTrigger, Figures, Thresholds, Trigger, parse


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("exit", "exit", 0),
        ("signal", "signal", 0),
        ("signal=USR2", "signal", signal.SIGUSR2),
        ("signal=sigusr1", "signal", signal.SIGUSR1),
        ("rss>2GiB", "rss", 2 << 30),
        ("rss>1.5G", "rss", 3 << 29),
        ("rss > 100MB", "rss", 10**8),
        ("tasks>1000", "tasks", 1000),
        ("fds>80%", "fds", 0.8),
        ("fds>500", "fds", 500),
        ("every=30s", "every", 30),
        ("every=2m", "every", 120),
    ],
)
def test_a_trigger_is_read(text: str, kind: str, value: float) -> None:
    [trigger] = parse(text)
    assert (trigger.kind, trigger.value, trigger.share) == (kind, value, text.endswith("%"))


@pytest.mark.parametrize(
    "text",
    ["rain", "rss>", "rss>2light", "tasks>5%", "fds>120%", "every=0s", "every=x", "signal=KILL", "signal=NO"],
)
def test_what_is_no_trigger_is_refused(text: str) -> None:
    with pytest.raises(BadTrigger):
        parse(text)


def test_several_are_separated_by_commas() -> None:
    assert [t.kind for t in parse(DEFAULT)] == ["exit", "signal", "crash", "hang"]
    assert [t.text for t in parse("exit, rss>1MiB")] == ["exit", "rss>1MiB"]


def test_a_threshold_fires_once_and_again_when_it_is_half_as_much_again() -> None:
    thresholds = Thresholds([Trigger("threads", 100, text="threads>100")])
    fired = [bool(thresholds.fired(1, Figures(threads=n))) for n in (100, 101, 140, 152, 160, 300)]
    assert fired == [False, True, False, True, False, True]
    assert not thresholds.fired(2, Figures(threads=99))
    assert thresholds.fired(2, Figures(threads=101))  # each process has its own


def test_a_threshold_fires_a_few_times_only() -> None:
    thresholds = Thresholds([Trigger("rss", 1, text="rss>1")])
    assert sum(bool(thresholds.fired(1, Figures(rss=2**n))) for n in range(1, 40)) == MOST


def test_a_share_is_of_the_limit() -> None:
    thresholds = Thresholds([Trigger("fds", 0.8, share=True, text="fds>80%")])
    assert not thresholds.fired(1, Figures(fds=900, limit=0))
    assert not thresholds.fired(1, Figures(fds=800, limit=1000))
    assert thresholds.fired(1, Figures(fds=801, limit=1000))
