"""Check whether a number is an identifier or only looks like one."""

from __future__ import annotations

import ipaddress
import re
import string

# Length of an IBAN by country (SWIFT IBAN registry).
IBAN_LENGTHS = {
    entry[:2]: int(entry[2:])
    for entry in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 "
        "DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 "
        "IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 "
        "MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 "
        "SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
    ).split()
}

# First digits that networks issue cards under (ISO/IEC 7812 registrations in use).
_ISSUERS = re.compile(r"4|5[0-9]|2[2-7]|3[0-9]|6|1800|2131")
# Addresses that occur in every manual identify nobody.
_COMMON_ADDRESSES = {"192.168.0.1", "192.168.1.1", "10.0.0.1", "8.8.8.8", "1.1.1.1"}


def digits_of(text: str) -> str:
    """Return the ASCII digits of a text."""
    return re.sub(r"[^0-9]", "", text)


def luhn(digits: str) -> bool:
    """Return True if digits satisfy the Luhn check of card numbers (ISO/IEC 7812-1, annex B)."""
    total = 0
    for position, char in enumerate(reversed(digits)):
        value = int(char)
        if position % 2:
            value *= 2
            value -= 9 if value > 9 else 0
        total += value
    return total % 10 == 0


def check_digit(digits: str) -> str:
    """Return the digit that completes digits to a number with a right Luhn check."""
    return next(check for check in string.digits if luhn(digits + check))


def iban(country: str, account: str) -> str:
    """Return the IBAN of an account with its check digits (ISO 13616, modulo 97-10)."""
    number = "".join(str(int(char, 36)) for char in account + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{account}"


def is_card(text: str) -> bool:
    """Return True if a number can be a payment card's, by length, issuer and Luhn check."""
    digits = digits_of(text)
    if not 12 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    return bool(_ISSUERS.match(digits)) and luhn(digits)


def iban_end(text: str, start: int) -> int | None:
    """Return the end of the IBAN that starts at a position, None if there is none.

    Single spaces and hyphens are allowed between its characters; ISO 7064 modulo 97 must hold.
    """
    length = IBAN_LENGTHS.get(text[start : start + 2].upper())
    if length is None:
        return None
    characters: list[str] = []
    at = start
    while at < len(text) and len(characters) < length:
        char = text[at]
        if char.isascii() and char.isalnum():
            characters.append(char)
        elif char not in " -" or text[at - 1] in " -":
            return None
        at += 1
    if len(characters) < length or (at < len(text) and text[at].isalnum()):
        return None
    iban = "".join(characters).upper()
    number = "".join(str(int(char, 36)) for char in iban[4:] + iban[:4])
    return at if int(number) % 97 == 1 else None


def is_ssn(text: str) -> bool:
    """Return True if nine digits can be a US social security or taxpayer number (SSA, IRS)."""
    digits = digits_of(text)
    if len(digits) != 9:
        return False
    area, group, serial = int(digits[:3]), int(digits[3:5]), int(digits[5:])
    if area >= 900:
        return 50 <= group <= 99 and serial != 0
    return area not in (0, 666) and group != 0 and serial != 0


def is_ipv4(text: str) -> bool:
    """Return True if a dotted quad is an address that may belong to someone."""
    try:
        parsed = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    plain = parsed.is_loopback or parsed.is_unspecified or text.startswith("255.")
    return not plain and text not in _COMMON_ADDRESSES


def is_ipv6(text: str) -> bool:
    """Return True if a text is an IPv6 address, not a time or a name in code such as `a::b`."""
    try:
        parsed = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    groups = [group for group in text.split(":") if group]
    named = len(groups) >= 4 or re.match(r"2[0-9a-f]{3}|f[cde][0-9a-f]{2}", text, re.IGNORECASE)
    return bool(named) and any(c.isdigit() for c in text) and not parsed.is_loopback


def is_phone_anywhere(text: str) -> bool:
    """Return True if a national number is valid in one of the most common countries."""
    import phonenumbers

    for region in ("US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "AT", "CH", "AU", "IN", "FI"):
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(text, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False
