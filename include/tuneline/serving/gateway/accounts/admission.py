"""Whether a key may make a request: a place for it, its models, its rates, its budgets.

A budget is held against what the ledger says is spent, plus what the requests under way may still
take: a claim by the length of the prompt and `max_tokens`. The usage that upstreams report replaces
the claim, and once the ledger's sums have it, the claim goes. So requests that come at once can't
all pass through the last tokens of a budget.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tuneline.serving.gateway.accounts.keys import Budget, KeyLimits, KeyRecord, KeyRing
from tuneline.serving.gateway.accounts.spending import SpendingReader, Spent
from tuneline.serving.gateway.chain.attempt import Attempt, Call
from tuneline.serving.gateway.config import KeptUser
from tuneline.serving.gateway.ledger.database import periods
from tuneline.serving.gateway.ledger.writer import Ledger
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.request import ApiError, try_again
from tuneline.serving.gateway.upstream_config import TokenRates

_LONGEST = 64
_HASH_DIGITS = 16
MINUTE_S = 60.0
_BYTES_PER_TOKEN = 4
# Claimed for an answer whose length the client leaves open.
_UNSTATED_TOKENS = 256
# JSON has integers that no float holds.
_MOST_TOKENS = 2**31
# Until it is known how much of a budget the requests under way leave.
_SOON_S = 1
_NOTHING = Spent()


def kept_user(user: Any, how: KeptUser) -> str:
    """Return what the ledger keeps of a user; what is no text names nobody.

    `hash` keeps the first 16 hex digits of its SHA-256, a pseudonym: who has a list of users can
    hash it too. `plain` keeps up to 64 printable characters.
    """
    if how == "none" or not isinstance(user, str) or not user:
        return ""
    if how == "hash":
        digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
        return f"u-{digest[:_HASH_DIGITS]}"
    return "".join(c if c.isprintable() else "?" for c in user[:_LONGEST])


@dataclass
class RateEntry:
    """A request of the last minute; its tokens are those that it took or may take."""

    time: float
    tokens: int


class Minute:
    """The requests of a key in the last 60 seconds, a window that slides.

    Unlike a bucket that refills, it never lets twice the limit pass within one minute.
    """

    def __init__(self) -> None:
        self._requests: deque[RateEntry] = deque()
        self._tokens = 0

    def add(self, request: RateEntry) -> None:
        """Take a request."""
        self._requests.append(request)
        self._tokens += request.tokens

    def change(self, request: RateEntry, tokens: int) -> None:
        """Set the tokens of a request, once they are known."""
        if self._requests and self._requests[0].time <= request.time:
            self._tokens += tokens - request.tokens
        request.tokens = tokens

    def wait_for_request(self, limit: int, now: float) -> float:
        """Return the seconds until one more request is within the limit; 0 if it is now."""
        self._forget(now)
        surplus = len(self._requests) - limit
        return 0.0 if surplus < 0 else _until_forgotten(self._requests[surplus], now)

    def wait_for_tokens(self, limit: int, now: float) -> float:
        """Return the seconds until the tokens of the minute are below the limit; 0 if they are."""
        self._forget(now)
        taken = self._tokens
        if taken < limit:
            return 0.0
        for request in self._requests:
            taken -= request.tokens
            if taken < limit:
                return _until_forgotten(request, now)
        return MINUTE_S

    def _forget(self, now: float) -> None:
        while self._requests and self._requests[0].time <= now - MINUTE_S:
            self._tokens -= self._requests.popleft().tokens


def _until_forgotten(request: RateEntry, now: float) -> float:
    """Return the seconds until a request is no longer one of the last minute."""
    wait = request.time + MINUTE_S - now
    # Rounding may leave it a hair too short.
    while request.time > now + wait - MINUTE_S:
        wait += math.ulp(now + wait)
    return wait


def whole_seconds(wait: float) -> int:
    """Return a wait as `Retry-After` states it: whole seconds, at least one."""
    return max(1, math.ceil(wait))


@dataclass
class _Claim:
    """What a request may take, until the ledger's sums have what it took.

    Attributes:
        periods: day and month of its admission; what it takes counts there.
        known: False if an attempt took tokens that nobody has counted yet.
        ended_at: number of attempts that the ledger had taken when it ended.
    """

    key: str
    periods: tuple[str, str]
    claimed: Spent
    counts: Spent = _NOTHING
    request: RateEntry | None = None
    seen: Spent = _NOTHING
    known: bool = True
    ended_at: int = 0


class _UnderWay:
    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Spent] = {}
        self._claims: Counter[tuple[str, str]] = Counter()

    def of(self, period: str, key: str) -> Spent:
        return self._sums.get((period, key), _NOTHING)

    def add(self, claim: _Claim) -> None:
        for period in claim.periods:
            self._claims[period, claim.key] += 1
        self.change(claim, claim.claimed)

    def change(self, claim: _Claim, counts: Spent) -> None:
        tokens, cost = counts.tokens - claim.counts.tokens, counts.cost - claim.counts.cost
        for period in claim.periods:
            place = (period, claim.key)
            before = self.of(*place)
            self._sums[place] = Spent(before.tokens + tokens, before.cost + cost)
        claim.counts = counts

    def remove(self, claim: _Claim) -> None:
        self.change(claim, _NOTHING)
        for period in claim.periods:
            place = (period, claim.key)
            self._claims[place] -= 1
            if not self._claims[place]:
                # Also what is left of rounding goes.
                del self._claims[place], self._sums[place]


@dataclass
class _Place:
    """A request under way, and the memory that it holds, in bytes."""

    key: str
    size: int = 0


class _Places:
    """The requests under way. Where there are several keys, none may hold more than half."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._places: dict[str, _Place] = {}
        self._requests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def limit(self, key: str, places: int) -> int:
        grant = self._keys.grant_of(key)
        own = grant.limits.requests_at_once if grant else None
        return own or self._share(places)

    def take(self, request_id: str, key: str, places: int) -> bool:
        """Take a place; return False if the key has as many as it may."""
        if self._requests[key] >= self.limit(key, places):
            return False
        self._requests[key] += 1
        self._places[request_id] = _Place(key)
        return True

    def hold(self, request_id: str, size: int, most: int) -> bool:
        """Let a request hold memory; return False if that is too much with the others."""
        place = self._places[request_id]
        of_others = self._bytes.total() - place.size
        of_key = self._bytes[place.key] - place.size
        # Alone it may be as large as `max_body_bytes` lets it be.
        if (of_others and of_others + size > most) or (
            of_key and of_key + size > self._share(most)
        ):
            return False
        self._bytes[place.key] = of_key + size
        place.size = size
        return True

    def leave(self, request_id: str) -> None:
        place = self._places.pop(request_id, None)
        if place is not None:
            self._requests[place.key] -= 1
            self._bytes[place.key] -= place.size
            if not self._requests[place.key]:
                del self._requests[place.key], self._bytes[place.key]

    def _share(self, whole: int) -> int:
        return whole if len(self._keys) < 2 else max(1, whole // 2)


class Admission:
    """The limits of all keys, in the event loop of one gateway."""

    def __init__(
        self,
        keys: KeyRing,
        ledger: Ledger,
        book: SpendingReader,
        *,
        rates_of: Callable[[str], TokenRates],
        users: KeptUser,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._ledger = ledger
        self._book = book
        self._rates_of = rates_of
        self._users = users
        self._metrics = metrics
        self._clock = clock
        self._places = _Places(keys)
        self._claims: dict[str, _Claim] = {}
        self._ended: deque[_Claim] = deque()
        self._under_way = _UnderWay()
        self._minutes: dict[str, Minute] = {}
        ledger.on_taken = self._add_usage

    def enter(self, request_id: str, key: str, places: int) -> None:
        """Take a place for a request; `release` has to follow.

        Raises:
            ApiError: 429 if the key has as many under way as it may.
        """
        if not self._places.take(request_id, key, places):
            self._metrics.refusals.labels("requests_at_once").inc()
            most = self._places.limit(key, places)
            raise _too_many(f"This API key may have {most} requests under way, and has")

    def hold(self, request_id: str, size: int, most: int) -> None:
        """Let a request that has entered hold so many bytes of those that all may hold.

        Raises:
            ApiError: 429 if that is too much together with the other requests.
        """
        if not self._places.hold(request_id, size, most):
            self._metrics.refusals.labels("bytes_at_once").inc()
            raise _too_many("The requests under way are as large as they may be together")

    def admit(self, call: Call) -> Call:
        """Let a request pass, with the user that the ledger keeps, or say why not.

        Raises:
            ApiError: 401 if the key was revoked a moment ago, 403 if the model is not for it, 429
                if a rate or a budget is used up.
        """
        grant = self._keys.grant_of(call.key)
        if grant is None:
            raise ApiError(401, "The API key was revoked.", code="invalid_api_key")
        if not grant.allows(call.model):
            self._metrics.refusals.labels("models").inc()
            raise ApiError(
                403,
                "This API key may not use that model; GET /v1/models lists those that it may.",
                kind="permission_error",
                code="model_not_allowed",
            )
        if grant.limits:
            self._take(call, grant)
        user = kept_user(call.request.body.get("user"), self._users)
        return replace(call, user=user) if user else call

    def release(self, request_id: str) -> None:
        """End a request: what it took is in the queue of the ledger by now."""
        self._places.leave(request_id)
        claim = self._claims.pop(request_id, None)
        if claim is None:
            return
        claim.ended_at = self._ledger.taken
        took = claim.seen if claim.known else claim.claimed
        self._under_way.change(claim, took)
        if claim.request:
            self._minutes[claim.key].change(claim.request, took.tokens)
        self._ended.append(claim)

    def _take(self, call: Call, grant: KeyRecord) -> None:
        self._settle()
        self._check_budgets(grant)
        claim = _Claim(call.key, periods(self._clock()), self._claimed(call))
        if grant.limits.rated:
            now = time.monotonic()
            minute = self._minutes.setdefault(call.key, Minute())
            self._check_rates(grant.limits, minute, now)
            claim.request = RateEntry(now, claim.claimed.tokens)
            minute.add(claim.request)
        self._under_way.add(claim)
        self._claims[call.request_id] = claim

    def _claimed(self, call: Call) -> Spent:
        body = call.request.body
        prompt = call.request.size // _BYTES_PER_TOKEN
        stated = _count(body.get("max_completion_tokens")) or _count(body.get("max_tokens"))
        answer = (stated or _UNSTATED_TOKENS) * call.request.choices
        return Spent(prompt + answer, self._rates_of(call.model).cost(prompt, answer))

    def _add_usage(self, attempt: Attempt) -> None:
        """Note what an attempt took, as the upstream reported it."""
        claim = self._claims.get(attempt.call.request_id)
        if claim is None:
            return
        if attempt.must_count:
            # The writer's thread counts the tokens; until the sums have them the claim holds.
            claim.known = False
            return
        row = attempt.row
        tokens = row.prompt_tokens + row.completion_tokens
        claim.seen = Spent(claim.seen.tokens + tokens, claim.seen.cost + row.cost)

    def _settle(self) -> None:
        written = self._book.view.written
        while self._ended and self._ended[0].ended_at <= written:
            self._under_way.remove(self._ended.popleft())

    def _check_budgets(self, grant: KeyRecord) -> None:
        if not (budgets := grant.limits.budgets):
            return
        now = self._clock()
        day, month = periods(now)
        sums = self._book.view.sums
        for budget in budgets:
            period = day if budget.period == "day" else month
            spent = sums.get((period, grant.name), _NOTHING).of(budget)
            under_way = self._under_way.of(period, grant.name).of(budget)
            if spent + under_way >= budget.amount:
                self._metrics.refusals.labels(budget.name).inc()
                raise _refusal(budget, period, now, spent >= budget.amount)

    def _check_rates(self, limits: KeyLimits, minute: Minute, now: float) -> None:
        checks: list[tuple[str, int | None, Callable[[int, float], float]]] = [
            ("requests", limits.requests_per_minute, minute.wait_for_request),
            ("tokens", limits.tokens_per_minute, minute.wait_for_tokens),
        ]
        for what, limit, wait_for in checks:
            if limit is not None and (wait := wait_for(limit, now)) > 0:
                self._metrics.refusals.labels(f"{what}_per_minute").inc()
                after_s = whole_seconds(wait)
                why = f"This API key may use {limit} {what} per minute, and has; try again in "
                raise try_again(429, f"{why}{after_s} s.", after_s, "rate_limit_exceeded", what)


def _count(value: Any) -> int:
    """Return a client's number, 0 if it states none; upstreams refuse what is absurd."""
    return int(min(value or 0, _MOST_TOKENS))


def _too_many(why: str) -> ApiError:
    # The rest of the body is not read, so the connection can't go on.
    why = f"{why}; try again shortly."
    return try_again(429, why, _SOON_S, "too_many_requests", connection="close")


def _refusal(budget: Budget, period: str, now: float, is_spent: bool) -> ApiError:
    amount = f"{budget.amount:g} {'tokens' if budget.unit == 'tokens' else 'in money'}"
    if not is_spent:
        why = (
            f"The requests of this API key under way may use up its budget of {amount} per "
            f"{budget.period}; try again when one of them has ended."
        )
        return try_again(429, why, _SOON_S, "budget_claimed", "insufficient_quota")
    left = whole_seconds((_end_of(budget, now) - datetime.fromtimestamp(now, UTC)).total_seconds())
    why = f"The budget of this API key for the {budget.period} {period} (UTC), {amount}, is spent."
    quota = "insufficient_quota"
    # Clients of OpenAI's library must not try again within seconds.
    return try_again(429, why, left, quota, quota, x_should_retry="false")


def _end_of(budget: Budget, now: float) -> datetime:
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if budget.period == "day":
        return midnight + timedelta(days=1)
    # The 28th plus four days is in the next month, whatever the month.
    return (midnight.replace(day=28) + timedelta(days=4)).replace(day=1)
