"""Prompts: what is let through, what is turned away, and with which words."""

from __future__ import annotations

import pytest

from carv_server.demo.convention import Convention, PromptError


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("a red torus", "a red torus"),
        ("  A  Red   TORUS. ", "a red torus"),
        ("torus", "torus"),
        ("an orange cube", "an orange cube"),
    ],
)
def test_known_prompts_pass(convention: Convention, given: str, clean: str) -> None:
    assert convention.check_prompt(given) == clean


def test_unknown_words_are_named_with_the_known_ones(convention: Convention) -> None:
    with pytest.raises(PromptError) as caught:
        convention.check_prompt("a shiny red teapot")
    message = str(caught.value)
    assert "unknown words 'shiny', 'teapot'" in message
    for word in (*convention.shapes, *convention.colours):
        assert word in message.split("knows:")[1].split()


def test_a_prompt_needs_a_shape_and_no_view(convention: Convention) -> None:
    with pytest.raises(PromptError, match="names no shape"):
        convention.check_prompt("red")
    with pytest.raises(PromptError, match="names no shape"):
        convention.check_prompt("")
    with pytest.raises(PromptError, match="names a view"):
        convention.check_prompt("a red torus, side view")


def test_alternatives_swap_the_shape_or_the_colour(convention: Convention) -> None:
    others = convention.alternatives("a red torus")
    assert len(others) == len(set(others)) == 5 + 7
    assert "a red cube" in others and "an orange torus" in others
    assert "a red torus" not in others
    assert len(convention.alternatives("a torus")) == 5


def test_view_prompt(convention: Convention) -> None:
    assert convention.view_prompt("a red torus", 90.0, 10.0) == "a red torus, side view"
    assert convention.view_prompt("a red torus", 90.0, 70.0) == "a red torus, overhead view"
