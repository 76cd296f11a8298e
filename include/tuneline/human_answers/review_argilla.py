"""The pairs of a review as records of Argilla 2, and records with the responses of its users.

The form is the one that `Dataset.records.to_json` of the Argilla SDK writes and `from_json` reads:
a list of objects with `id`, `fields`, `metadata` and `responses`, where `responses` holds a list of
`{"value": …, "user_id": …}` under the name of each question. The questions are `choice` (a label:
A, B, tie, both bad) and `comment` (text, not required).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tuneline.artifacts.evaluation import ReviewPair
from tuneline.errors import UserError
from tuneline.human_answers.given_votes import GivenVote

_TEXTS = {"prompt": "prompt", "answer_a": "A", "answer_b": "B"}


def written(review_id: str, pairs: Iterable[ReviewPair]) -> bytes:
    """Return the records of some pairs, without responses."""
    records = [
        {
            "id": f"{review_id}-{pair.pair}",
            "fields": {field: getattr(pair, name) for field, name in _TEXTS.items()},
            "metadata": {"review_id": review_id, "pair": pair.pair},
            "suggestions": {},
            "responses": {},
            "vectors": {},
            "_server_id": None,
        }
        for pair in pairs
    ]
    return json.dumps(records, indent=1, ensure_ascii=False).encode()


def read(raw: bytes, name: str, users: Mapping[str, str]) -> list[GivenVote]:
    """Read the responses of records; a record without any is no vote yet and is passed over.

    Args:
        raw: the file's bytes.
        name: its name, for errors.
        users: names of users by their id; a response of another one keeps the id.

    Raises:
        UserError: if it is not a list of such records. File, record (from 1) and field are named.
    """
    try:
        records = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"{name}: expected a list of Argilla records, as `records.to_json` writes")
    votes: list[GivenVote] = []
    for number, record in enumerate(records, 1):
        votes.extend(_votes(record, f"{name}, record {number}", users))
    return votes


def _votes(record: Any, where: str, users: Mapping[str, str]) -> list[GivenVote]:
    metadata, fields = _object(record, "metadata", where), _object(record, "fields", where)
    responses = _object(record, "responses", where)
    comments = dict(_responses(responses, "comment", where))
    return [
        GivenVote(
            where,
            str(metadata.get("review_id", "")),
            str(metadata.get("pair", "")),
            choice.strip(),
            users.get(user, user),
            comments.get(user, "").strip(),
            {field: str(fields[shown]) for shown, field in _TEXTS.items() if shown in fields},
        )
        for user, choice in _responses(responses, "choice", where)
    ]


def _object(record: Any, field: str, where: str) -> dict[str, Any]:
    found = record.get(field) if isinstance(record, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {field} is missing or no object; is this an Argilla record?")
    return found


def _responses(responses: Mapping[str, Any], question: str, where: str) -> list[tuple[str, str]]:
    """Return the user and the value of each response to a question."""
    found = []
    for response in responses.get(question) or []:
        value, user = (
            (response.get("value"), response.get("user_id"))
            if isinstance(response, dict)
            else (None, None)
        )
        if not isinstance(value, str) or not isinstance(user, str):
            raise UserError(f"{where}, responses.{question}: expected a text value and a user_id")
        found.append((user, value))
    return found
