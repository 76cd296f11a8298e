"""A table of the uses that common licences allow.

A summary for a gate, not legal advice. Sources: the SPDX licence list
(https://spdx.org/licenses/), choosealicense.com's appendix, and the licence texts of
the model families.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Use = Literal["internal", "commercial", "distribution"]


@dataclass(frozen=True)
class Rule:
    """The uses that a licence allows, and their condition."""

    commercial: bool
    distribution: bool
    condition: str

    def allows(self, use: Use) -> bool:
        """Return True if the use is allowed; distribution means distribution in a product."""
        if use == "internal":
            return True
        return self.commercial and (use == "commercial" or self.distribution)


_PERMISSIVE = Rule(True, True, "keep the notice")
_WEAK_COPYLEFT = Rule(True, True, "changes to its own files stay under it")
_STRONG_COPYLEFT = Rule(True, False, "what is distributed with it must be under it")
_SHARE_ALIKE = Rule(True, False, "adaptations are shared alike, with attribution")
_NON_COMMERCIAL = Rule(False, False, "non-commercial use only")

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "Apache-2.0 MIT MIT-0 BSD-2-Clause BSD-3-Clause 0BSD ISC Zlib PSF-2.0 Python-2.0 "
            "Unlicense CC0-1.0 CC-BY-3.0 CC-BY-4.0 BSL-1.0 HPND CNRI-Python PostgreSQL "
            "NCSA Unicode-3.0 MIT-CMU BSD Apache CDLA-Permissive-2.0 ODC-By-1.0"
        ).split(),
        _PERMISSIVE,
    ),
    **dict.fromkeys(
        (
            "MPL-2.0 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later LGPL "
            "EPL-2.0 CDDL-1.0"
        ).split(),
        _WEAK_COPYLEFT,
    ),
    **dict.fromkeys(
        (
            "GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later GPL AGPL-3.0-only "
            "AGPL-3.0-or-later AGPL SSPL-1.0"
        ).split(),
        _STRONG_COPYLEFT,
    ),
    **dict.fromkeys("CC-BY-SA-3.0 CC-BY-SA-4.0 ODbL-1.0".split(), _SHARE_ALIKE),
    **dict.fromkeys(
        "CC-BY-NC-4.0 CC-BY-NC-SA-4.0 CC-BY-NC-ND-4.0 CC-BY-NC-2.0 CC-BY-NC-3.0".split(),
        _NON_COMMERCIAL,
    ),
    "CC-BY-ND-4.0": Rule(True, False, "no adapted versions may be distributed"),
    "llama3": Rule(True, True, "under 700 million monthly users; name Llama in the model's name"),
    "llama3.1": Rule(True, True, "under 700 million monthly users; name Llama in the model's name"),
    "llama3.2": Rule(True, True, "under 700 million monthly users; not for EU on vision models"),
    "llama3.3": Rule(True, True, "under 700 million monthly users; name Llama in the model's name"),
    "gemma": Rule(True, True, "pass the prohibited-use policy on"),
    "NOASSERTION": Rule(False, False, "no licence is stated"),
}

# Names that packages and model cards use for the licences above.
_ALIASES = {
    "apache 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "apache2": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "mit license": "MIT",
    "the mit license": "MIT",
    "bsd license": "BSD",
    "bsd-3": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "modified bsd license": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "isc license": "ISC",
    "python software foundation license": "PSF-2.0",
    "psf": "PSF-2.0",
    "psf license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl 2.0": "MPL-2.0",
    "the unlicense (unlicense)": "Unlicense",
    "gnu general public license v3 (gplv3)": "GPL-3.0-only",
    "gnu general public license v2 (gplv2)": "GPL-2.0-only",
    "gplv3": "GPL-3.0-only",
    "gnu affero general public license v3": "AGPL-3.0-only",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "gnu library or lesser general public license (lgpl)": "LGPL",
    "cc by 4.0": "CC-BY-4.0",
    "cc by 3.0": "CC-BY-3.0",
    "cc0": "CC0-1.0",
}
_BY_LOWER = {name.lower(): name for name in RULES}


def normalise(text: str | None) -> str:
    """Return the SPDX id or expression of a licence in any spelling.

    `NOASSERTION` stands for none; an unknown text is returned as it is.
    """
    cleaned = re.sub(r"\s+", " ", (text or "").strip())
    lowered = cleaned.lower()
    if not lowered or lowered in ("unknown", "other", "none"):
        return "NOASSERTION"
    # SPDX marks licences that it does not list; the table has some of them.
    named = lowered.removeprefix("licenseref-")
    return _ALIASES.get(named) or _BY_LOWER.get(named) or cleaned


def judge(license_id: str, use: Use) -> tuple[bool | None, str]:
    """Judge whether a licence allows a use.

    Args:
        license_id: an SPDX id or expression with AND, OR and WITH.
        use: the intended use.

    Returns:
        True or False with the rule that decides; None for a licence that the table lacks.
    """
    expression = license_id.replace("(", " ").replace(")", " ").strip()
    for word, choose in ((" OR ", any), (" AND ", all)):
        if word in expression:
            parts = [judge(normalise(part), use) for part in expression.split(word)]
            reason = "; ".join(why for _, why in parts)
            verdicts = [allowed for allowed, _ in parts]
            decisive = choose is any
            if decisive in verdicts:
                return decisive, reason
            return (None, reason) if None in verdicts else (not decisive, reason)
    name = normalise(expression.split(" WITH ")[0])
    rule = RULES.get(name)
    if rule is None:
        return None, f"{name[:60]}: no rule for this licence"
    allowed = rule.allows(use)
    return allowed, f"{name}: {'allows' if allowed else 'refuses'} {use} use ({rule.condition})"
