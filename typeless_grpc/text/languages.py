"""Tables for the rules of each language: fillers, words that are doubled on purpose, and how numbers are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Speech:
    """How a language is spoken. All words are in lower case.

    fillers: sounds without meaning, anywhere. clause_fillers: words without meaning if they are a clause of their own,
    but not otherwise. doubled: words that are spoken twice on purpose. stuttered: words with so little meaning that a
    repetition is a stutter even across a comma or a hyphen.
    """

    fillers: frozenset[str] = frozenset()
    clause_fillers: frozenset[str] = frozenset()
    doubled: frozenset[str] = frozenset()
    stuttered: frozenset[str] = frozenset()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SPEECH: Mapping[str, Speech] = {
    "en": Speech(
        fillers=_words("um umm uh uhh uhm uhm er erm ehm hmm hm mm mmm"),
        doubled=_words(
            "that had very really so too much many no yes yeah yep nope ok okay bye hey hi hello ha haha oh ah "
            "aha please wait now never well there again knock night go come on long far half blah bla tut ding "
            "tick beep choo hear chop hush cha can boo ho hee is in on her out up over off down back around by do "
            "big little old good nice real long deep sorry help stop look wow right fine sure just more la na da"
        ),
        stuttered=_words(
            "i you he she it we they a an the and but or if of to at for with from my your his our their "
            "this was are were be i'm i've it's we're he's she's that's what who how when where because can "
            "could will would"
        ),
    ),
    "es": Speech(
        fillers=_words("eh ehh em emm mm mmm hm hmm"),
        doubled=_words(
            "muy sí no ya bien más tan casi que luego poco así hola adiós ja jaja ay oye mira venga vale ahora "
            "nunca gracias bueno claro ahí tal cha ñam toc"
        ),
        stuttered=_words(
            "yo tú él ella el la los las un una unos unas y o de en a con por para mi tu su se me te lo le es"
        ),
    ),
    "fr": Speech(
        fillers=_words("euh heu euhm hum hmm hm mm mmm"),
        doubled=_words(
            "nous vous très oui non si bien ah oh ha là tout plus trop merci allez bon alors encore jamais petit "
            "bonjour vite oh attention pardon super elle eux toc cha tam ron"
        ),
        stuttered=_words(
            "je tu il elle on ils elles le la les un une des et ou mais de du à en dans avec pour mon ma c'est"
        ),
    ),
    "de": Speech(
        fillers=_words("äh ähm ähh öh öhm hm hmm mm mmm ehm"),
        doubled=_words(
            "die der das den dem sehr ja nein doch so nie immer ganz viel gut danke bitte hallo ha haha ach oh "
            "los komm sie ihr schnell lange weit genau klopf tick tut la bitte halt stopp"
        ),
        stuttered=_words("ich du er es wir und oder aber ein eine einen in im auf mit von zu für ist war mein dein"),
    ),
    "zh": Speech(
        fillers=_words("嗯 呃 唔 嗯嗯"),
        clause_fillers=_words("那个 这个 额 啊 就是说"),
        stuttered=_words(
            "我 你 他 她 它 我们 你们 他们 她们 这 那 这个 那个 就是 然后 因为 所以 但是 如果 可以 在 有 的 把 跟 和 就"
        ),
    ),
}


@dataclass(frozen=True)
class Notation:
    """How a language writes numbers. All words are in lower case.

    decimal, group: the marks within numbers. scales: names of 10^6 and more, singular and plural. bare: number words
    that stay as they are, because they mean "many" as often as a number. percent, currencies, units: from the words
    after a number to their symbol. symbol_first: "$5" rather than "5 $". cents: words after the second part of an
    amount; cents_joiners: words before it, "" if the number follows at once. months: their names; month_joiner: the
    word between the day and the month. hours: words after the hour, with the form of a time with minutes and of one
    without, "" if the latter stays in words. pairs_are_years: whether "nineteen ten" is a year. zeros: words for 0 in a
    row of digits.
    """

    decimal: str = "."
    group: str = ","
    bare: frozenset[str] = frozenset()
    scales: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    percent: tuple[str, ...] = ()
    currencies: Mapping[str, str] = field(default_factory=dict)
    symbol_first: bool = False
    cents: frozenset[str] = frozenset()
    cents_joiners: frozenset[str] = frozenset()
    units: Mapping[str, str] = field(default_factory=dict)
    months: frozenset[str] = frozenset()
    month_joiner: str = ""
    hours: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    pairs_are_years: bool = False
    days_are_ordinal: bool = False
    zeros: frozenset[str] = frozenset()
    hundred_articles: frozenset[str] = frozenset()
    telephone_pairs: int = 0
    ordinals: Mapping[str, str] = field(default_factory=dict)
    nouns_are_capital: bool = False
    kept: tuple[re.Pattern[str], ...] = ()


def _phrases(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


_METRIC = {"km/h": "km/h", "km": "km", "cm": "cm", "mm": "mm", "kg": "kg"}

NOTATION: Mapping[str, Notation] = {
    "en": Notation(
        bare=_words("hundred hundreds thousand thousands million millions billion billions trillion dozen"),
        scales={10**6: ("million", "million"), 10**9: ("billion", "billion"), 10**12: ("trillion", "trillion")},
        percent=("percent", "per cent"),
        currencies={"dollar": "$", "dollars": "$", "euro": "€", "euros": "€"},
        symbol_first=True,
        cents=_words("cent cents"),
        cents_joiners=_words("and") | {""},
        units={
            **_METRIC,
            **dict.fromkeys(("kilometers per hour", "kilometres per hour"), "km/h"),
            "miles per hour": "mph",
            **dict.fromkeys(("kilometer", "kilometers", "kilometre", "kilometres"), "km"),
            **dict.fromkeys(("centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
            **dict.fromkeys(("millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
            **dict.fromkeys(("kilogram", "kilograms", "kilo", "kilos"), "kg"),
            **dict.fromkeys(("degrees celsius", "degree celsius"), "°C"),
            "degrees fahrenheit": "°F",
            **dict.fromkeys(("megabyte", "megabytes"), "MB"),
            **dict.fromkeys(("gigabyte", "gigabytes"), "GB"),
        },
        months=_words("january february march april may june july august september october november december"),
        month_joiner="of",
        pairs_are_years=True,
        days_are_ordinal=True,
        zeros=_words("oh o"),
        hundred_articles=_words("a"),
        kept=_phrases(
            r"\b[\w-]+(?: \w+)? and (?:a half|a quarter|a third|three quarters|two thirds)\b",
            r"\b(?:tens of|fifty[- ]fifty|five and ten)\b",
            r"\b\w+ (?:hundreds|(?:twen|thir|for|fif|six|seven|eigh|nine)ties)\b",
            r"\bpoint [\w-]+(?: point [\w-]+)+",
            r"\b(?:half|quarter|five|ten|twenty|twenty[- ]five) (?:past|to|till|after) "
            r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b",
        ),
    ),
    "es": Notation(
        decimal=",",
        group=".",
        bare=_words("cien ciento cientos mil miles millón millones"),
        scales={10**6: ("millón", "millones")},
        percent=("por ciento", "por cien"),
        currencies={"euro": "€", "euros": "€", "dólar": "$", "dólares": "$"},
        cents=_words("céntimo céntimos centavos"),
        cents_joiners=_words("con y"),
        units={
            **_METRIC,
            "kilómetros por hora": "km/h",
            **dict.fromkeys(("kilómetro", "kilómetros"), "km"),
            **dict.fromkeys(("centímetro", "centímetros"), "cm"),
            **dict.fromkeys(("milímetro", "milímetros"), "mm"),
            **dict.fromkeys(("kilogramo", "kilogramos", "kilo", "kilos"), "kg"),
            "grados celsius": "°C",
        },
        months=_words("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
        month_joiner="de",
        kept=_phrases(
            r"\b\w+(?: \w+)? y (?:medi[oa]|cuarto|pico|tant[oa]s)\b",
            r"\blas? (?:una|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez|once|doce) (?:y|menos) (?:\w+ y )?\w+",
            r"\bsiglos? \w+(?: y \w+)?",
            r"\b(?:Alfonso|Benedicto|Carlos|Clemente|Felipe|Gregorio|Juan|León|Luis|Pío) \w+(?: y \w+)?",
        ),
    ),
    "fr": Notation(
        decimal=",",
        group="\u202f",
        bare=_words("cent cents mille million millions milliard milliards"),
        scales={10**6: ("million", "millions"), 10**9: ("milliard", "milliards")},
        percent=("pour cent",),
        currencies={"euro": "€", "euros": "€", "dollar": "$", "dollars": "$"},
        cents=_words("centime centimes"),
        cents_joiners=_words("et") | {""},
        units={
            **_METRIC,
            **dict.fromkeys(("kilomètres par heure", "kilomètres-heure", "kilomètres heure"), "km/h"),
            **dict.fromkeys(("kilomètre", "kilomètres"), "km"),
            **dict.fromkeys(("centimètre", "centimètres"), "cm"),
            **dict.fromkeys(("millimètre", "millimètres"), "mm"),
            **dict.fromkeys(("kilogramme", "kilogrammes", "kilo", "kilos"), "kg"),
            "degrés celsius": "°C",
        },
        months=_words("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
        hours=dict.fromkeys(("heure", "heures"), ("{}\u00a0h\u00a0{:02d}", "")),
        telephone_pairs=5,
        ordinals={"ème": "e"},
        kept=_phrases(
            r"\b[\w-]+(?: \w+)? (?:et demie?|et quart|moins le quart|et quelques)\b",
            r"\b(?:mille et une?|son trente et un)\b",
            r"\b[\w-]+(?: et [\w-]+)? siècles?\b",
            r"\b(?:Benoît|Charles|Clément|Grégoire|Henri|Jean|Léon|Louis|Philippe|Pie) [\w-]+",
        ),
    ),
    "de": Notation(
        decimal=",",
        group=".",
        bare=_words("hundert hunderte tausend tausende million millionen milliarde milliarden"),
        scales={10**6: ("Million", "Millionen"), 10**9: ("Milliarde", "Milliarden")},
        percent=("prozent",),
        currencies={"euro": "€", "dollar": "$"},
        cents=_words("cent"),
        cents_joiners=_words("und") | {""},
        units={
            **_METRIC,
            **dict.fromkeys(("kilometer pro stunde", "stundenkilometer"), "km/h"),
            **dict.fromkeys(("kilometer", "kilometern"), "km"),
            **dict.fromkeys(("zentimeter", "zentimetern"), "cm"),
            **dict.fromkeys(("millimeter", "millimetern"), "mm"),
            **dict.fromkeys(("kilogramm", "kilo"), "kg"),
            "grad celsius": "°C",
        },
        months=_words("januar februar märz april mai juni juli august september oktober november dezember"),
        hours={"uhr": ("{}:{:02d}\u00a0Uhr", "{}\u00a0Uhr")},
        days_are_ordinal=True,
        nouns_are_capital=True,
        kept=_phrases(
            r"\b(?:fünf|zehn|zwanzig|viertel) (?:nach|vor) "
            r"(?:eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf)\b",
            r"\b(?:halb|dreiviertel|viertel) (?:eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf)\b",
        ),
    ),
    "it": Notation(decimal=",", group=".", bare=_words("cento mille mila milione milioni")),
    "pt": Notation(decimal=",", group=".", bare=_words("cem cento mil milhão milhões")),
    "nl": Notation(decimal=",", group=".", bare=_words("honderd duizend miljoen miljard")),
    "da": Notation(decimal=",", group=".", bare=_words("hundrede tusind million millioner")),
}
