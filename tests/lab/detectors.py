"""Detectors for tests, in place of the scrubber: what they find is known."""

import re
from collections import Counter

from tuneline.data.pii.replace.scrubber import Scrubbed

EVERYTHING = re.compile(r"[^\W_]+")
# What stands in edited text: capitalised names, numbers in their printed form, addresses.
EDITED = re.compile(
    r"\b[A-Z][\w'.-]+(?: [A-Z][\w'.-]+)*|\(?\d{3}\)?[ -]\d{3}-\d{4}|\S+@\S+|\b\d{4}[ -]\d{4}\b.*"
)
LONG_NUMBERS = re.compile(r"\+?\d(?:[ .()-]{0,2}\d){4,}")


class PatternDetector:
    """Replaces what a pattern matches in each turn on its own, except in unknown words."""

    custom_entities = ()
    ignored_labels = ()

    def __init__(self, pattern, entity="ID_NUMBER", keep=None):
        self.pattern, self.entity, self.keep = pattern, entity, keep

    def each(self, rows, workers=1, engine=None):
        """Scrub rows one by one."""
        return (self._row(messages) for _, messages in rows)

    def _row(self, messages):
        hits = Counter()
        changed = []
        for message in messages:
            content = message["content"]
            if not (self.keep and self.keep.search(content)) and message["role"] != "system":
                content, count = self.pattern.subn("§", content)
                hits[self.entity] += count
            changed.append({"role": message["role"], "content": content})
        return Scrubbed(changed, hits=+hits)
