from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.text.build import segment
from typeless_grpc.text.edits import Edit, edited
from typeless_grpc.text.tidying import fillers, repeated_words, stray_spaces


def changed(rule: Callable[[str, str], list[Edit]], text: str, language: str) -> str:
    return edited(segment(text, language), rule(text, language)).text


@pytest.mark.parametrize(
    ("language", "spoken", "written"),
    [
        ("en", "I I think the the dog dog barks", "I think the dog barks"),
        ("en", "The the dog", "The dog"),
        ("en", "I, I think, I- I know", "I think, I know"),
        ("en", "we we we we went", "we went"),
        ("en", "It's it's fine", "It's fine"),
        (
            "en",
            "He had had enough, very very much, no no, that that",
            "He had had enough, very very much, no no, that that",
        ),
        ("en", "Rain, rain, go away", "Rain, rain, go away"),
        ("en", "five five five 2 2", "five five five 2 2"),
        ("en", "Wait. Wait for me", "Wait. Wait for me"),
        ("en", "twenty twenty was twenty twenty-dollar bills", "twenty twenty was twenty twenty-dollar bills"),
        ("en", "In Bora Bora, a so so-called well well-known", "In Bora Bora, a so so-called well well-known"),
        ("en", "gave her her coat, log in in time, what it is is", "gave her her coat, log in in time, what it is is"),
        ("en", "I-I-I know", "I know"),
        ("es", "Yo yo creo que la la casa es muy muy grande", "Yo creo que la casa es muy muy grande"),
        ("fr", "Je je pense que nous nous voyons", "Je pense que nous nous voyons"),
        ("de", "Ich ich glaube, die die das sagen sagen es", "Ich glaube, die die das sagen es"),
        ("zh", "我我我觉得妹妹看看这个这个，这个东西", "我觉得妹妹看看这个东西"),
        ("zh", "研究研究，谢谢", "研究研究，谢谢"),
        ("vi", "xanh xanh", "xanh xanh"),
    ],
)
def test_repeated_words(language: str, spoken: str, written: str):
    assert changed(repeated_words, spoken, language) == written


@pytest.mark.parametrize(
    ("language", "spoken", "written"),
    [
        ("en", "Um, so I think", "So I think"),
        ("en", "So, um, I think", "So, I think"),
        ("en", "So um, uh, I think", "So I think"),
        ("en", "I think, um.", "I think."),
        ("en", "I think. Uh, maybe. Uh no", "I think. Maybe. No"),
        ("en", "We uh went there", "We went there"),
        ("en", "uh-huh, the umbrella, album", "uh-huh, the umbrella, album"),
        ("en", "Um... well", "Well"),
        ("en", "Um.", ""),
        ("en", "Fine. Hmm. Um, well.", "Fine. Well."),
        ("en", "in the ER, a 5 mm screw, five mm", "in the ER, a 5 mm screw, five mm"),
        ("en", "UM, YES", "YES"),
        ("de", "Er geht um acht, ähm, nach Hause", "Er geht um acht, nach Hause"),
        ("es", "Eh, creo que, em, sí", "Creo que, sí"),
        ("fr", "Euh, je crois, euh, oui", "Je crois, oui"),
        ("zh", "嗯，我想，那个，去。那个人", "我想，去。那个人"),
        ("zh", "那个，呃我们走吧", "我们走吧"),
        ("pt", "um homem em casa", "um homem em casa"),
    ],
)
def test_fillers(language: str, spoken: str, written: str):
    assert changed(fillers, spoken, language) == written


@pytest.mark.parametrize(
    ("language", "spoken", "written"),
    [
        ("en", "Hello  ,  world !", "Hello, world!"),
        ("en", "( yes )", "(yes)"),
        ("en", "at .5 percent", "at .5 percent"),
        ("fr", "Vraiment ?  Oui , oui", "Vraiment ? Oui, oui"),
        ("zh", "明天 早上 ， 我和 Anna 去", "明天早上，我和 Anna 去"),
        ("es", "¿ Qué tal ?", "¿Qué tal?"),
        ("de", "30\u00a0°C", "30\u00a0°C"),
    ],
)
def test_stray_spaces(language: str, spoken: str, written: str):
    assert changed(stray_spaces, spoken, language) == written


@pytest.mark.parametrize("rule", [repeated_words, fillers, stray_spaces])
@given(text=st.text(max_size=60), language=st.sampled_from(["en", "es", "fr", "de", "zh", "th", ""]))
def test_any_text_of_any_script_has_edits_in_order_within_it(rule, text: str, language: str):
    position = 0
    for edit in rule(text, language):
        assert position <= edit.start <= edit.end <= len(text)
        position = edit.end
