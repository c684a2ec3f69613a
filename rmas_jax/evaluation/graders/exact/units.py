"""Words after a number: a unit, a factor, or neither.

A unit that only one of two answers has is no difference, as the question may imply it; different
units are. A factor changes the number: 5 million is not 5.
"""

from __future__ import annotations

from .values import UnreadableError, words_of

_SPELLINGS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "inch": "in inche",
    "foot": "ft feet",
    "yard": "yd",
    "mile": "mi",
    "acre": "",
    "hectare": "ha",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram kilo",
    "ton": "tonne",
    "ounce": "oz",
    "pound": "lb",
    "ml": "milliliter millilitre mL",
    "cl": "centiliter centilitre",
    "l": "liter litre L",
    "gallon": "gal",
    "second": "sec s",
    "minute": "min",
    "hour": "hr h",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "$": "dollar usd buck",
    "cent": "¢",
    "€": "euro",
    "£": "gbp",
    "%": "percent percentage pct",
    "degree": "deg",
    "radian": "rad",
    "unit": "",
    "mph": "",
    "kph": "kmh",
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "V": "volt",
    "A": "ampere amp",
    "Hz": "hertz",
    "K": "kelvin",
    "C": "celsius",
    "F": "fahrenheit",
    "mol": "mole",
    "man": "men",
    "woman": "women",
    "person": "people",
    "child": "children",
    "way": "",
    "time": "",
    "am": "a.m",
    "pm": "p.m",
}
_NAMES = {word: unit for unit, words in _SPELLINGS.items() for word in (unit, *words.split())}
_COMPOUND = {"mph": ("mile", "hour"), "kph": ("km", "hour")}
FACTORS = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
    "lakh": 10**5,
    "crore": 10**7,
    "dozen": 12,
}
_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS = {word: number for number, word in enumerate(_ONES)}
NUMBERS |= {
    f"{tens}-{ones}" if number else tens: 10 * (i + 2) + number
    for i, tens in enumerate(_TENS)
    for number, ones in enumerate(_ONES[:10])
}
# Words of up to three letters that are words wherever they stand; other short runs of letters are
# products: xy.
SHORT = words_of(
    "no yes odd red not is are the per cup cat dog pen car hat if at one two six ten sq cu all any"
    " box egg pie bag can cow fox"
) | {word for word in _NAMES if 2 <= len(word) <= 3 and word.isalpha()} - {"ha", "cl", "dm"}
# Words that would change the meaning of the number before them.
_NO_UNITS = words_of(
    """a an and or not no none nor but if is isn't are aren't was be than then less more fewer at
    least most about approx approximately roughly around nearly almost over under above below plus
    minus times mod modulo factorial to between negative positive half halves third thirds quarter
    quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths
    tenth tenths hundredth hundredths thousandth thousandths root roots wrong right incorrect
    correct false true maybe perhaps with without except unless when where for from by divided
    multiplied
    power exponent base point repeating recurring inclusive exclusive infinity infinitely undefined
    other others another answer unknown squared cubed i we it cannot can't don't hundred thousand
    million billion trillion quadrillion lakh crore k bn mn mio mln tn dozen score gross mille
    permille tens ones inverse reciprocal opposite
    conjugate complement i'm mixed both either neither grand mil bil remainder doubled
    tripled halved twice thrice fold tenfold hundredfold mega giga tera myriad milliard milliards
    millionen milliarden millones"""
)
_FILLERS = words_of("the old long tall wide high deep")  # after a unit, they change nothing
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERS_AFTER = {"squared": 2, "cubed": 3}
MOST_WORDS = 6


def unit_of(parts: list[str | int]) -> tuple[tuple[str, int], ...]:
    """The unit of words, exponents (of the word before) and `/`.

    Raises:
      UnreadableError: these words are no unit.
    """
    if len(parts) > MOST_WORDS:
        raise UnreadableError("too many words after a number")
    exponents: dict[str, int] = {}
    sign, power, last = 1, 1, ""
    for i, part in enumerate(parts):
        if isinstance(part, int):
            if not last:
                raise UnreadableError("an exponent without a unit")
            exponents[last] += (abs(part) - 1) * (1 if exponents[last] > 0 else -1)
            if part < 0:
                exponents[last] *= -1
            continue
        word = part if part in _NAMES or len(part) == 1 else part.lower().strip(".")
        if word in ("/", "per", "an", "a") and (last or word in ("/", "per")):
            sign = -1
        elif word in _POWERS:
            power = _POWERS[word]
        elif word in _POWERS_AFTER and last:
            exponents[last] *= _POWERS_AFTER[word]
        elif word == "of" and last:  # cups of flour are cups, but pairs of three are no pairs
            if {str(other).lower() for other in parts[i:]} & ({*NUMBERS} | _NO_UNITS - {"a", "an"}):
                raise UnreadableError("a number of groups")
            break
        elif word in _NO_UNITS or word in NUMBERS or not word:
            raise UnreadableError(f"{part!r} after a number is no unit")
        elif word not in _FILLERS:
            last = _canonical(word)
            for name, side in zip(_COMPOUND.get(last, (last,)), (1, -1), strict=False):
                exponents[name] = exponents.get(name, 0) + sign * side * power
            power, sign = 1, 1
    if not exponents or sign < 0:
        raise UnreadableError("words after a number that are no unit")
    return tuple(sorted(exponents.items()))


def may_be_missing(name: str) -> bool:
    """Whether an answer may leave a unit out: not 7\\text{x}, whose letter is no unit's."""
    return name in _SPELLINGS or not (len(name) == 1 and name.isalpha())


def _canonical(word: str) -> str:
    """One spelling of a unit's name, in the singular."""
    if word in _NAMES:
        return _NAMES[word]
    singular = word[:-1] if word.endswith("s") and not word.endswith("ss") else word
    return _NAMES.get(singular, singular)
