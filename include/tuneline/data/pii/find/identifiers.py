"""Find what has a fixed form and check digits, and name the kind of a number.

Check digits name a kind; they never drop a number, for people mistype. The libraries that know them
are imported where they are used: Airflow's environment, which judges the evidence, lacks them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from tuneline.data.pii.find.entities import Hit
from tuneline.machine.linear_pattern import WORD, LinearPattern
from tuneline.machine.redaction import find_secrets

# Digits of a payment card (ISO/IEC 7812), a phone number (ITU-T E.164), a social security number.
_CARD, _PHONE_DIGITS, _SSN_DIGITS = range(13, 20), range(7, 16), 9
# Characters of a run of digits in which cards are looked for, and of the longest key.
_LONGEST_RUN, _MOST_KEY = 400, 512
_EMAIL = LinearPattern(
    rf"(?:^|[^{WORD}.+%'-])([{WORD}+%'-]+(?:\.[{WORD}+%'-]+)*@"
    rf"[\pL\pN][{WORD}-]*(?:\.[\pL\pN](?:[{WORD}-]*[\pL\pN])?)+)"
)
_DIGITS = LinearPattern(rf"(?:^|[^{WORD}.])(\d(?:[ .-]{{0,2}}\d){{11,}})(?:$|[^{WORD}])")
_IBAN = LinearPattern(
    rf"(?i)(?:^|[^{WORD}])([A-Z]{{2}}[ -]?\d[ -]?\d(?:[ -]?[A-Z0-9]{{1,4}}){{3,10}})"
)
_SSN = LinearPattern(
    rf"(?:^|[^{WORD}.-])(\d{{3}}(?:-\d\d-|\.\d\d\.| \d\d )\d{{4}})(?:$|[^{WORD}-])"
)
_HOST = LinearPattern(rf"(?:^|[^{WORD}.:])([0-9A-Fa-f]*[.:][0-9A-Fa-f.:]*[0-9A-Fa-f:])")
_LONG_WORD = LinearPattern(r"(\S{20}\S*)")
_VERSION = re.compile(r"(?i)\b(?:v|version|firmware|build|release|driver)\W{0,3}$")
_MAC = LinearPattern(
    rf"(?i)(?:^|[^{WORD}:-])((?:[0-9a-f]{{2}}:){{5}}[0-9a-f]{{2}}|(?:[0-9a-f]{{2}}-){{5}}[0-9a-f]{{2}})"
    rf"(?:$|[^{WORD}:-])"
)
# A number in the form of a phone number: with a prefix, or in groups.
_PHONE = LinearPattern(
    rf"(?:^|[^{WORD}.+-])(\+ ?\d(?:[ .()/-]{{0,3}}\d){{6,14}}|00? ?\d(?:[ .()/-]{{0,3}}\d){{6,13}}|"
    r"(?:1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]?\d{4})"
    rf"(?:$|[^{WORD}-])"
)
_PHONE_CUE = re.compile(
    r"(?i)\b(?:phone|tel|cell|mobil|call|text|fax|whatsapp|contact|ring|reach|handy|anruf|"
    r"tél|appel|joindre|llam|móvil|celular|telefo)"
)
_SSN_CUE = re.compile(r"(?i)\b(?:ssn|social)\b")
# Characters before a number in which a word says what it is.
_REACH = 40


def find_identifiers(text: str) -> Iterator[Hit]:
    """Yield secrets, e-mail addresses and what check digits or a form confirm; they may overlap."""
    yield from (Hit(*secret) for secret in find_secrets(text))
    yield from _keys(text)
    if "@" in text:
        yield from (Hit(*span, "EMAIL_ADDRESS") for span in _EMAIL.spans(text))
    if not any(map(str.isdecimal, text)):
        return
    from stdnum import iban

    yield from (Hit(*span, "CREDIT_CARD") for span in _cards(text))
    yield from (Hit(*span, "US_SSN") for span in _SSN.spans(text))
    yield from (Hit(*span, "MAC_ADDRESS") for span in _MAC.spans(text))
    for first, last in _IBAN.spans(text):
        # What follows an IBAN may look like a part of it.
        ends = (end for end in range(last, first + 14, -1) if text[end - 1].isalnum())
        if end := next((end for end in ends if iban.is_valid(text[first:end])), None):
            yield Hit(first, end, "IBAN_CODE")
    for start, end in _HOST.spans(text):
        if _is_host(text[start:end]) and not _VERSION.search(text[max(0, start - 12) : start]):
            yield Hit(start, end, "IP_ADDRESS")
    for start, end in _PHONE.spans(text):
        if _is_phone(text[start:end]):
            yield Hit(start, end, "PHONE_NUMBER")


def _keys(text: str) -> Iterator[Hit]:
    """Yield the keys that detect-secrets knows; it backtracks, so it sees bounded words only."""
    for first, last in _LONG_WORD.spans(text):
        for plugin in _plugins() if last - first <= _MOST_KEY else ():
            for value in plugin.analyze_string(text[first:last]):
                start = text.index(value, first)
                yield Hit(start, start + len(value), "API_KEY")


@cache
def _plugins() -> list[Any]:
    names = (
        "artifactory.Artifactory azure_storage_key.AzureStorageKey discord.DiscordBotToken "
        "ibm_cloud_iam.IbmCloudIam mailchimp.Mailchimp sendgrid.SendGrid slack.Slack "
        "square_oauth.SquareOAuth telegram_token.TelegramBotToken twilio.TwilioKey"
    )
    parts = (name.split(".") for name in names.split())
    modules = ((import_module(f"detect_secrets.plugins.{module}"), name) for module, name in parts)
    return [getattr(module, f"{name}Detector")() for module, name in modules]


# A calendar date in the form of ISO 8601.
_ISO_DATE = re.compile(r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])")


def name_number(text: str, start: int, end: int) -> str:
    """Return the entity type of a number, by its check digits, its form and the words before it."""
    from stdnum import luhn

    value = text[start:end]
    if _ISO_DATE.fullmatch(value):
        return "DATE"
    digits = re.sub(r"\D", "", value)
    before = text[max(0, start - _REACH) : start]
    if len(digits) in _CARD and luhn.is_valid(digits):
        return "CREDIT_CARD"
    if len(digits) == _SSN_DIGITS and _SSN_CUE.search(before):
        return "US_SSN"
    phone = len(digits) in _PHONE_DIGITS and not any(map(str.isalpha, value))
    if phone and (_PHONE_CUE.search(before) or (not value.isdecimal() and _is_phone(value))):
        return "PHONE_NUMBER"
    return "ID_NUMBER"


def _cards(text: str) -> Iterator[tuple[int, int]]:
    """Yield the groups of digits that together satisfy the check of card numbers (ISO 7812-1)."""
    from stdnum import luhn

    for first, last in _DIGITS.spans(text):
        if last - first > _LONGEST_RUN:
            continue
        groups = [match.span() for match in re.finditer(r"\d+", text[first:last])]
        taken = 0
        for at, (start, _) in enumerate(groups):
            digits, found = "", taken
            for part in groups[at:] if start >= taken else ():
                digits += text[first + part[0] : first + part[1]]
                if len(digits) > _CARD[-1]:
                    break
                if len(digits) in _CARD and luhn.is_valid(digits) and len(set(digits)) > 1:
                    found = part[1]
            if found > taken:
                yield first + start, first + found
                taken = found


def _is_host(value: str) -> bool:
    """Return True for an address of a machine of IPv4 or IPv6."""
    try:
        return bool(ipaddress.ip_address(value)) and any(map(str.isdecimal, value))
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def _is_phone(value: str) -> bool:
    """Return True for a number that some country's plan has, or that is grouped as in the US."""
    import phonenumbers

    for region in (None,) if value.startswith("+") else ("US", "GB", "DE", "FR", "ES", "IT", "NL"):
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(value, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False
