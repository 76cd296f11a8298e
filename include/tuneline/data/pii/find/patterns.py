"""Find by a cue what the models do not know: dates of birth, passwords, codes, words for digits.

The group that matched is the value. docs/decisions/0052-personal-data-by-a-model.md has what each
pattern finds alone: one that finds nothing on labelled rows goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tuneline.data.pii.find.entities import DEMANDED_ONLY, Hit
from tuneline.machine.linear_pattern import WORD, LinearPattern

# RE2's \b knows ASCII only.
_B = rf"(?i)(?:^|[^{WORD}])"
_E = rf"(?:$|[^{WORD}])"
MONTH = (
    "jan(?:uary|uar|eiro|vier)?|enero|gennaio|f[eé][bv](?:ruary|ruar|rero|braio|ereiro|"
    "rier|ruari)?|mar(?:ch|zo|ço|s)?|märz|maart|a[pbv]r(?:il|ile)?|may|mai|mayo|maio|mei|maggio|"
    "jun[eiy]?|junio|junho|juin|giugno|jul[iy]?|julio|julho|juillet|luglio|aug(?:ust|ustus)?|"
    "agosto|août|sep(?:t|tember|tembre|tiembre)?|setembro|settembre|o[ck]t(?:ober|ubre|obre)?|"
    "outubro|ott(?:obre)?|nov(?:ember|embre|iembre|embro)?|de[cz](?:ember|embro)?|dic(?:iembre|"
    "embre)?|déc(?:embre)?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th|\.|º|er)?"
_YEAR = r"(?:\d{4}|'?\d{2})"
_DATE = (
    r"\d{1,4} ?[./-] ?\d{1,2} ?[./-] ?\d{2,4}|\d{1,2} \d{1,2} \d{2,4}|\d{6}|\d{8}|"
    rf"(?:the )?{_DAY} ?(?:of |de |di )?(?:{MONTH})\.?,? ?(?:of |de |di )?{_YEAR}|"
    rf"(?:{MONTH})\.? (?:the )?{_DAY},? ?{_YEAR}"
)
# People often give a birthday without its year.
_BIRTHDAY = rf"{_DATE}|(?:the )?{_DAY} ?(?:of |de |di )?(?:{MONTH})|(?:{MONTH})\.? (?:the )?{_DAY}"
_TOP = "(?:com|net|org|edu|gov|info|io|me|co|de|fr|es|it|nl|pt|br|uk|in|eu|ch|at)"
_DIGIT = "zero|oh|one|two|three|four|five|six|seven|eight|nine|double|triple"
_IS = (
    r"(?: ?[:=#] ?| (?:number |no\.? )?(?:is|was|ist|lautet|es|est|è|é|to)(?: now| set to)?:? | ) ?"
)
# An age over 89.
OLD = r"(?:9\d|1[01]\d)"
_QUOTE = "[\"'“«(]?"
# What is said of a password.
_STATES = frozenset(
    "again blocked changed correct done expired forgotten from have help here incorrect "
    "invalid link locked lost needed option page please policy protected required reset "
    "right same screen secure settings stolen strong that this update updated valid weak "
    "with working wrong your abgelaufen falsch gesperrt nicht richtig sicher vergessen "
    "zurücksetzen bloqueada caducada correcta incorrecta olvidada débil segura bloqué expiré "
    "incorrect oublié faible".split()
)
# Patterns of values with a digit, and of others, by entity type and what they find.
_NUMBERS = {
    "BIRTH_DATE: date of birth": rf"{_B}"
    rf"(?:born|d\.?o\.?b\.?|birth(?:day|date)?|geboren|geb\.|geburts\w+|nac[ií]\w*|"
    r"nascimento|nascit[ao]|nat[oa] il|nasci|née?|naissance|geboorte\w*)"
    rf"[^\d\n]{{0,24}}?[^{WORD}]({_BIRTHDAY}){_E}|"
    rf"{_B}({_BIRTHDAY}) (?:geboren|is (?:my|his|her|the) (?:birthday|date of birth|dob)){_E}",
    "PASSWORD: PIN or code": rf"{_B}"
    rf"(?:pin|otp|passcode|cv[vc]2?|(?:security|access|verification|one[- ]time|sms|the|my)"
    rf" code|code (?:is|was)|code:)[^{WORD}\n](?:[^\n\d]{{0,22}}[^{WORD}\n\d])?"
    rf"(\d{{3,8}}|\d[\d -]{{1,8}}\d){_E}",
    "ID_NUMBER: last digits": rf"{_B}"
    rf"(?:last (?:four|4|three|3)|ends? (?:in|with)|ending(?: in| with)?|letzten vier|"
    r"endet auf|derniers chiffres|últim[oa]s (?:cuatro|quatro)|ultime quattro|laatste vier)"
    rf"[^\n\d]{{0,24}}[^{WORD}](\d{{3,5}}){_E}",
    "CREDIT_CARD: expiry": rf"{_B}"
    rf"(?:exp(?:iry|ires?|iration)?|valid (?:thru|until)|gültig bis|caduca|vencimiento|"
    rf"scade|validade|expire|geldig tot)[^\n\d]{{0,12}}[^{WORD}]"
    rf"((?:0?[1-9]|1[0-2]) ?[/-] ?(?:20)?\d\d|(?:{MONTH})\.? (?:of )?{_YEAR}){_E}",
    "ID_NUMBER: numbered document": rf"{_B}"
    rf"(?:passport|licen[cs]e|account|acct|policy|member(?:ship)?|patient|record|mrn|"
    r"number plate|plate|vin|claim|confirmation|booking|reference|routing|ausweis\w*|konto\w*|"
    r"pasaporte|cuenta|compte|passeport|conto|conta|rekening\w*)"
    r"(?:[ -]?(?:number|no|nr|num|id|plate|code|nummer|número|numéro|numero))?\.?"
    rf"(?: (?:is|was|ist|es|est|è|é))?[\s:#]{{1,3}}([A-Z0-9-]*\d[A-Z0-9-]*"
    rf"(?:[ -][A-Z]{{0,3}}\d[A-Z0-9]*){{0,4}}){_E}",
    # "P-76399": equal codes are found in every sentence, so that equal rows stay equal.
    "ID_NUMBER: code": rf"(?:^|[^{WORD}-])([A-Za-z]{{1,2}}-\d{{5,}})\b",
    "US_SSN: social security number": rf"{_B}(?:ssn|social(?: security)?)[^\d\n]{{0,30}}"
    rf"(\d{{3}}[-. ]{{0,3}}\d{{2}}[-. ]{{0,3}}\d{{4}}|\d{{4}}){_E}",
    "PHONE_NUMBER: phone": rf"{_B}"
    rf"(?:phone|tel\w*|cell|mobil\w*|call|text|fax|whatsapp|móvil|handy\w*|appel\w*|reach)"
    rf"[^\d\n+(]{{0,30}}(\+?\(?\d(?:[ ()./-]{{0,3}}\d){{5,14}}){_E}",
    "DATE: date": rf"{_B}({_DATE}|(?:the )?{_DAY} ?(?:of |de |di )?(?:{MONTH})|"
    rf"(?:{MONTH})\.? (?:the )?\d{{1,2}}(?:st|nd|rd|th)?|(?:{MONTH})\.?,? \d{{4}}){_E}",
    "POSTAL_CODE: postal code": rf"{_B}"
    rf"(?:zip|zip ?code|post(?:al)? ?code|plz|postleitzahl|c\.?p\.?|cap|code postal|cep)"
    rf"(?: (?:is|was|ist|es|est|è))?[^{WORD}]{{0,3}}"
    rf"(\d(?: ?\d){{3,5}}(?: ?- ?\d{{4}})?|[a-z]{{1,2}}\d[a-z\d]? ?\d[a-z]{{2}}){_E}",
    "AGE_OVER_89: age over 89": rf"{_B}"
    rf"({OLD})[ -]?(?:years?[ -]old|y\.?o\.?|years of age|jahre|ans|años|anni|anos|jaar)"
    rf"{_E}|{_B}(?:aged?|turn(?:ed|s|ing)?|alter|âge|edad|età|idade|leeftijd){_IS}({OLD}){_E}",
}
_WORDS = {
    "PASSWORD: password": rf"{_B}"
    rf"(?:pass(?:word|wort|code|phrase|wd)?|pwd?|kennwort|contraseña|clave|senha|"
    r"mot de passe|wachtwoord)(?: (?:for|of) (?:\w+ ){1,3}?| (?:i|that|she|he) \w+)?"
    rf"{_IS}{_QUOTE}([^\s\"']*(?:[0-9#$%&*_-]|[!?][^\s\"'])[^\s\"'”»)]*|[^\s\"'.,]+ \d{{2,8}})|"
    r"(?:^|[\s,:\"'])([^\s\"',:]*[0-9_!#$%&*.]+[^\s\"',:.]+)[\"']? (?:is|was|ist|es|est) "
    r"(?:the|my|mein|das|mi|la|mon|le) (?:new )?(?:pass(?:word|code|wort)|pin|pwd|kennwort|"
    rf"contraseña|clave|mot de passe|code|otp){_E}",
    "PASSWORD: password without a digit": rf"{_B}"
    rf"(?:pass(?:word|code|phrase|wort)|kennwort|contraseña|mot de passe)"
    rf"(?: (?:is|was|ist|lautet|es|est)(?: ?[:=])? | ?[:=] ?){_QUOTE}"
    rf"([{WORD}]+)(?:$|[\s\"',;.!”»]+(?:$|[A-Z]|and |und |et |y |thanks|ok))",
    "EMAIL_ADDRESS: e-mail in words": rf"{_B}"
    rf"([{WORD}.+-]+(?: ?(?:dot|\.|underscore|dash|_) ?[{WORD}-]+){{0,3}}"
    rf" ?(?:@|[(\[{{<]at[)\]}}>]| at ) ?[{WORD}-]+"
    rf"(?: ?\. ?| (?:dot|punkt|punto|point|ponto|punt) )(?:[a-z]{{2,12}}(?:\.| \. ))?{_TOP}){_E}",
    "EMAIL_ADDRESS: e-mail without @": rf"{_B}([{WORD}.+-]+ (?:[{WORD}-]+\.)+(?:{_TOP})){_E}",
    "EMAIL_ADDRESS: e-mail without marks": rf"{_B}((?:[{WORD}.+-]+ )?(?:\d+ )?[{WORD}.+-]*"
    r"(?:g?mail|yahoo|hotmail|outlook|icloud|aol|gmx)[ .]?(?:dot ?)?"
    rf"(?:com|net|de|fr|es|it|nl|co ?uk)|[{WORD}.+-]+ [{WORD}-]+ (?:dot )?com){_E}",
    "ID_NUMBER: number in words": rf"{_B}((?:(?:{_DIGIT})[ ,-]+){{3,}}(?:{_DIGIT})){_E}",
    # No "x", or "2 x 4 x 8" is one.
    "ID_NUMBER: spelled": r"(?i)(?:^|\s)((?:[a-wyzà-ÿ\d][ -]){3,}[a-wyzà-ÿ\d])(?:$|[\s.,!?])",
    "ID_NUMBER: user name": rf"{_B}"
    rf"(?:user ?name|login|user ?id|benutzername|usuario|identifiant|utente|gebruikersnaam)"
    rf"{_IS}([{WORD}.-]*(?:[\d_]|[.-][{WORD}])[{WORD}.-]*)",
    "URL: URL": r"(?i)((?:https?|ftp)://[^\s<>\"']+|\bwww\.[^\s<>\"']+)",
}
PATTERNS = [
    (key.partition(":")[0], LinearPattern(pattern), numbers)
    for table, numbers in ((_NUMBERS, True), (_WORDS, False))
    for key, pattern in table.items()
]


def find_patterns(text: str, wanted: Collection[str]) -> Iterator[Hit]:
    """Yield what the patterns find, of `DEMANDED_ONLY` wanted types alone; hits may overlap."""
    digit = any(map(str.isdecimal, text))
    for entity, pattern, numbers in PATTERNS:
        if (numbers and not digit) or (entity in DEMANDED_ONLY and entity not in wanted):
            continue
        for match in pattern.finditer(text):
            start, end = match.span(match.lastindex)
            if text[start:end].casefold() not in _STATES:
                yield Hit(start, end, entity)
