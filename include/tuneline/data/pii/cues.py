"""Know the words that introduce a name."""

from __future__ import annotations

from tuneline.data.pii.caseless import Caseless

_NAME = r"[^\W\d_][^\W\d_'’.-]*(?:['’-][^\W\d_]+)*\.?"
_NAMES = rf"({_NAME}(?: {_NAME}){{0,3}})"
# After these comes a name, whatever else it means ("Mr Long").
_TITLES = "mr mrs ms mx miss dr frau herr señora señor sra madame monsieur mme signora"
TITLE_CUE = Caseless(rf"\b(?:{_TITLES.replace(' ', '|')})\.? " + _NAMES)
TITLES = frozenset(_TITLES.split())
# After these comes a name, in any case.
SURE_CUE = Caseless(
    r"\b(?:my (?:full )?name(?: is|'s|’s|s(?: is)?|:)|the name(?: is|'s|’s|:)|"
    r"i am called|i'm called|"
    r"name(?: is|:)|account holder(?: is|:)|cardholder(?: is|:)|"
    r"holder(?: is|:)|on behalf of|attn:?|customer:|client:)\.? " + _NAMES,
)
# After these comes a name if it is a known given name, or a word of no dictionary.
PERSON_CUE = Caseless(
    r"\b(?:i am|i'm|i’m|this is|b(?:irth)?-?day|"
    r"dear|hi|hello|signed|regards|sincerely|thanks(?: a lot)?|cheers|"
    r"thank you|in advance|welcome(?: back)?|ask(?: for)?|through to|calls? me|speak to|"
    r"spoke to|spoke with|"
    r"talked to|belongs to|"
    r"(?:change|correct|update) (?:it|that|the name|my name) to|ty|thx|"
    r"(?:guy|lady|someone|agent|person) (?:called|named)|"
    r"(?:(?:full|first|last|family|given|maiden|middle) |sur)name),?\s+" + _NAMES,
)
# After these comes a name, or what somebody does.
ROLE_CUE = Caseless(
    r"\b(?:tell|cc|speak with|talk(?:ed)? (?:to|with)|contact|in the name of|"
    r"under(?: the name(?: of)?)?|name of|manager|agent|nurse|doctor|prof(?:essor)?|captain|"
    r"advisor|colleague|my (?:wife|husband|son|daughter|mum|mom|mother|dad|father|brother|sister|"
    r"partner|boss|friend|assistant|flatmate|roommate|neighbou?r|uncle|aunt|cousin|girlfriend|"
    r"boyfriend|fianc[eé]e?|kid|baby|nan|gran(?:ny|dma|dpa)?|hubby|mate)(?:'?s)?),?\s+" + _NAMES,
)
# After these comes a short name, often no given name but any word that is not said every day.
NICKNAME_CUE = Caseless(
    r"\b(?:(?:every(?:one|body)|people|folks|friends?|family|they all|mates?|colleagues|you can|"
    r"you may|please) (?:just |all |usually |always |still )?calls? (?:me|him|her)|"
    r"(?:i|he|she|who|name but|name and) "
    r"(?:just |mostly |usually |always |also |actually )?go(?:es)? by|"
    r"(?:i'm|i am|he's|he is|she's|she is|also|better) known as)"
    r"(?: (?:the name|just|simply))? " + _NAMES,
)
# How often or when somebody calls, in place of a name.
TIMES = frozenset("twice once anytime asap whenever tonight collect afterwards early late".split())
NICKNAME_CUE_WORDS = frozenset("call calls go goes known".split())
ROLE_CUE_WORDS = frozenset(
    "tell cc speak talk talked contact under name manager agent nurse doctor prof professor "
    "captain advisor colleague my".split()
)
# Names that are rather verbs there.
VERBS = frozenset("bill can may said will".split())
# Before these stands a name if it is a known given name, or a word of no dictionary.
PERSON_TAIL = Caseless(
    r"(?:\b(?:hi|hey|hello|its|it's|it’s|hiya|yo),? |^|[,.!?;\n] ?)"
    rf"({_NAME}(?: {_NAME})?) (?:here|again|speaking|calling|from|lives (?:on|at|in)|"
    r"(?:can|could|may) (?:i|you|we)|is (?:the|my|her|his) (?:(?:first|last|full|family|given) )?"
    r"(?:sur)?name)\b",
)
# After these comes a name only if it is a known given name: it may be a place, too.
WEAK_CUE = Caseless(r"(?:\b(?:yours|best|to|for|from|with|by),?\s+|\n)" + _NAMES)
# After these comes a known name, also one that is a word said every day.
CALLED_CUE = Caseless(
    r"\b(?:call me|(?:she|he)(?:'s|’s|s| is)|this is|i am|i'm|i’m|im|"
    r"(?:first|last|given|family) name(?: is|:)?) " + _NAMES,
)
CALLED_CUE_WORDS = frozenset("call she he shes hes this i im name".split())
# Every sure cue holds one of these; looking for words is faster than for patterns.
SURE_CUE_WORDS = frozenset(
    "name names called holder cardholder behalf attn customer client".split()
)
PERSON_CUE_WORDS = frozenset(
    "am m this bday birthday day "
    "dear hi hello signed regards sincerely thanks cheers thank advance ask call "
    "change correct update calls speak spoke talked belongs welcome "
    "through name surname ty thx called named".split()
)
# Before this stands a name, also one that is a word said every day ("Mark speaking").
SPEAKING = Caseless(rf"(?<![\w'’-])({_NAME}(?: {_NAME})?) speaking\b(?! (?:to|with|of|about))")
TAIL_WORDS = frozenset("here again speaking calling from name surname lives can could may".split())
