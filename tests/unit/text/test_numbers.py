from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.text.build import segment
from typeless_grpc.text import chinese
from typeless_grpc.text.edits import edited
from typeless_grpc.text.numbers import written_numbers


def written(text: str, language: str) -> str:
    edits = chinese.written_numbers(text) if language == "zh" else written_numbers(text, language)
    return edited(segment(text, language), edits).text.replace("\u00a0", "~").replace("\u202f", "_")


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        (
            "twenty-four chairs and three tables for one hundred and fifty dollars.",
            "24 chairs and three tables for $150.",
        ),
        ("twenty three dollars and fifty cents, I think.", "$23.50, I think."),
        ("It was 150 dollars, not $150 or 50 percent", "It was $150, not $150 or 50%"),
        (
            "on March fifth, nineteen eighty-four, at half past three p.m.",
            "on March 5th, 1984, at half past three p.m.",
        ),
        ("the fifth of March and the twenty-first of June", "the 5th of March and the 21st of June"),
        ("in nineteen oh five and two thousand and ten", "in 1905 and 2010"),
        ("at three thirty p.m. or nine am", "at 3:30 p.m. or 9 am"),
        ("five kilometers at sixty miles per hour", "5~km at 60~mph"),
        ("minus twenty degrees celsius", "minus 20°C"),
        ("three point one four", "3.14"),
        ("call five five five one two three four", "call 5551234"),
        (
            "two hundred thousand people, two million, two point five million dollars",
            "200,000 people, 2~million, $2.5~million",
        ),
        (
            "One of us, a hundred people, millions, in a million years",
            "One of us, a hundred people, millions, in a million years",
        ),
        (
            "The second one is better than the first; one, two, three.",
            "The second one is better than the first; one, two, three.",
        ),
        ("It may well, to too won ate", "It may well, to too won ate"),
        ("\u00c9ric is twenty-two", "\u00c9ric is 22"),
        ("Twenty twenty, then twenty twenty-four, then nineteen o five", "2020, then 2024, then 1905"),
        ("a hundred and ten percent of a hundred and one", "110% of 101"),
        ("five dollars fifty, ten dollars and five cents", "$5.50, $10.05"),
        ("room two oh four, double oh seven, zero zero seven", "room 204, double oh seven, 007"),
        ("my number is five five five, one two three four", "my number is 555, 1234"),
    ],
)
def test_english(spoken: str, expected: str):
    assert written(spoken, "en") == expected


@pytest.mark.parametrize(
    "spoken",
    [
        "tens of thousands, in the nineteen eighties, a fifty-fifty chance, fifty fifty",
        "at ten thirty, boeing seven forty seven, flight one twenty three, twenty four seven, nine eleven",
        "eight hundred five five five one two three four",
        "one two three go, three two one, oh oh oh, oh one two",
        "one tenth, three tenths, a twentieth, for the hundredth time, the thousandth",
        "two and a half years, twenty-two and a half, ten dollars and a half, a dollar fifty",
        "half past ten, twenty past ten, ten to twelve, one of us, a couple, a second, the second one, no one am I",
        "version three point one point four, fourteen ninety-two, seventeen eighteen, minus one",
    ],
)
def test_english_that_stays_in_words(spoken: str):
    assert written(spoken, "en") == spoken


@pytest.mark.parametrize(
    ("language", "spoken"),
    [
        ("es", "Uno de nosotros, una vez, el segundo piso, mil euros, cien por cien, decenas de miles"),
        ("es", "las diez y media, las dos y veinte, las diez menos cinco, dos euros y medio, veinte y pico"),
        (
            "es",
            "el siglo veinte, Juan veintitrés, un décimo, medio millón, seiscientos doce treinta y cuatro",
        ),
        ("fr", "un mai pluvieux, quoi de neuf, l'un d'entre nous, mille et une nuits, sur son trente et un"),
        ("fr", "dix heures et demie, deux millions et demi, le vingtième siècle, Louis quatorze, un dixième"),
        ("fr", "un deux trois soleil, cent fois, une vingtaine, des dizaines"),
        (
            "de",
            "Ludwig der Vierzehnte. Jeder zehnte, der zwanzigste. Zum hundertsten Mal, eine Uhr",
        ),
        (
            "de",
            "um halb elf, zehn nach zehn, fünf vor zwölf, eins zwei drei, ein Mai, drei Zehntel",
        ),
        ("zh", "三点一刻，三三两两，三四个，十七八岁，十几个，几十个，八月十五，一二三走，十分，二百五"),
    ],
)
def test_others_that_stay_in_words(language: str, spoken: str):
    assert written(spoken, language) == spoken


@pytest.mark.parametrize(
    ("language", "spoken", "expected"),
    [
        ("es", "El tres de mayo de dos mil veinticuatro, una casa.", "El 3 de mayo de 2024, una casa."),
        ("es", "el primero de mayo, tres euros con cincuenta", "el 1 de mayo, 3,50~€"),
        ("es", "cincuenta por ciento, cinco kilómetros, treinta grados celsius", "50~%, 5~km, 30~°C"),
        ("es", "dos millones de personas, un perro y dos gatos", "2~millones de personas, un perro y dos gatos"),
        ("fr", "le premier mai deux mille vingt-quatre à trois heures trente", "le 1er mai 2024 à 3~h~30"),
        ("fr", "quatre-vingt-dix-neuf euros, trois euros cinquante, cinquante pour cent", "99~€, 3,50~€, 50~%"),
        ("fr", "trois cent mille dollars, mille mercis, une maison", "300_000~$, mille mercis, une maison"),
        ("de", "Am ersten Mai zweitausendvierundzwanzig um drei Uhr dreißig", "Am 1. Mai 2024 um 3:30~Uhr"),
        ("de", "drei Euro fünfzig, zwanzig Prozent, fünf Kilometer", "3,50~€, 20~%, 5~km"),
        (
            "de",
            "dreihunderttausend Leute, ein Mann, die zweite Frau, drei Komma eins vier",
            "300.000 Leute, ein Mann, die zweite Frau, 3,14",
        ),
        ("es", "en mil novecientos ochenta y cuatro, ciento veinte, un euro con cincuenta", "en 1984, 120, 1,50~€"),
        (
            "fr",
            "en mille neuf cent quatre-vingt-quatre, la dixième fois, un euro cinquante",
            "en 1984, la 10e fois, 1,50~€",
        ),
        ("fr", "le zéro six douze trente-quatre cinquante-six soixante-dix-huit", "le 06~12~34~56~78"),
        (
            "de",
            "null eins sieben sechs, ein Euro fünfzig, das zwanzigste Jahrhundert",
            "0176, 1,50~€, das 20. Jahrhundert",
        ),
        ("it", "ventiquattro case", "24 case"),
        ("pt", "vinte e quatro casas", "24 casas"),
        ("nl", "vierentwintig huizen", "24 huizen"),
        ("sw", "ishirini na nne", "ishirini na nne"),
    ],
)
def test_other_languages(language: str, spoken: str, expected: str):
    assert written(spoken, language) == expected


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        ("今天是二零二四年五月三号，一百二十块钱。", "今天是2024年5月3号，120块钱。"),
        ("下午三点十五分，百分之五十的人", "下午3:15，50%的人"),
        ("两千三百米，六十公斤，五十美元", "2300m，60kg，$50"),
        ("电话是一三八零零一三八零零零", "电话是13800138000"),
        ("二〇二四年，一百多个，三分之一", "2024年，100多个，1/3"),
        ("一样，万一，十分高兴，一起去，星期五，我有三个苹果", "一样，万一，十分高兴，一起去，星期五，我有三个苹果"),
        ("没有数字", "没有数字"),
    ],
)
def test_chinese(spoken: str, expected: str):
    assert written(spoken, "zh") == expected


def test_times_of_a_number_are_those_of_its_words():
    before = segment("about twenty three dollars and fifty cents today", words=True)
    after = edited(before, written_numbers(before.text, "en"))
    assert [word.text for word in after.words] == ["about", "$23.50", "today"]
    assert (after.words[1].start_s, after.words[1].end_s) == (before.words[1].start_s, before.words[6].end_s)


@given(text=st.text(max_size=60), language=st.sampled_from(["en", "es", "fr", "de", "it", "zh"]))
def test_any_text_has_edits_in_order_within_it(text: str, language: str):
    edits = chinese.written_numbers(text) if language == "zh" else written_numbers(text, language)
    position = 0
    for edit in edits:
        assert position <= edit.start < edit.end <= len(text)
        position = edit.end


NUMBER_WORDS = """one two nineteen twenty eighty-four hundred thousand million point oh and dollars cents percent km
p.m. March fifth of euro kilometers per hour 5 1,000 3.5 . , the"""
SPOKEN = st.lists(st.sampled_from(NUMBER_WORDS.split()), max_size=14).map(" ".join)


@given(text=SPOKEN)
def test_any_row_of_number_words_is_read_to_its_end(text: str):
    once = written(text, "en").replace("~", "\u00a0")
    assert len(once) <= len(text) + 8
