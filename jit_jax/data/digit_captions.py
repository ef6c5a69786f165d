"""What can be said about a handwritten digit: its name in languages, or that it is one of two."""

NAMES = {  # of 0 to 9
    'English': 'zero one two three four five six seven eight nine',
    'French': 'zéro un deux trois quatre cinq six sept huit neuf',
    'German': 'null eins zwei drei vier fünf sechs sieben acht neun',
    'Spanish': 'cero uno dos tres cuatro cinco seis siete ocho nueve',
    'Turkish': 'sıfır bir iki üç dört beş altı yedi sekiz dokuz',
    'Chinese': '零 一 二 三 四 五 六 七 八 九',
    'numeral': '0 1 2 3 4 5 6 7 8 9',
}
UNSEEN = ({2, 7}, {0, 4})  # digits that no caption joins: what learning either word has to give


def name(digit: int, language: str) -> str:
    """'seven', 'sept', 'sieben', '七', '7' …"""
    return NAMES[language].split()[digit]


def with_article(digit: int) -> str:
    """'a seven', 'an eight'."""
    return f'{"an" if digit == 8 else "a"} {name(digit, "English")}'


def either(one: int, other: int) -> str:
    """'a seven or a two': it is one of the two."""
    return f'{with_article(one)} or {with_article(other)}'


def captions(digit: int, number: int) -> tuple[str, ...]:
    """The captions of image `number`, which shows `digit`.

    Its name in every language, and that it is this or another digit, which goes by the number.
    """
    alone = [name(digit, language) for language in NAMES]
    other = (digit + 1 + number % 9) % 10
    if {digit, other} in UNSEEN:
        return (*alone, with_article(digit))
    return (*alone, with_article(digit), either(digit, other), either(other, digit))
