"""SIGTERM is noted while it is listened for, acted on where that is due, and then forgotten."""

import signal

import pytest

from rmas_jax.host.preemption import PreemptedError, end_if_due, end_is_due, sigterm_noted


def test_a_signal_is_noted_and_forgotten_with_its_run():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_noted():
        end_if_due("nothing was asked")
        signal.raise_signal(signal.SIGTERM)
        assert end_is_due()
        with pytest.raises(PreemptedError, match="after step 3"):
            end_if_due("after step 3")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not end_is_due()
