"""human_review: people who cannot know which model wrote an answer prefer the tuned one.

Method: the votes of a blind A/B review give a win rate with a Wilson interval (ties count half)
and the exact sign test, which decides at a stated level. Both count pairs and not votes: the
majority of the votes on a pair decides it. Votes count if they were given to the pairs of this very
review by people who were asked. Without a vote the evidence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuneline.artifacts.evaluation import (
    COUNTED_VOTES,
    REVIEW_KEY,
    REVIEW_PAIRS,
    KeyEntry,
    ReviewKey,
    ReviewPair,
    ReviewVotes,
)
from tuneline.evaluation.prepare_review import answers_by_row, shown_as
from tuneline.evaluation.review import judgement
from tuneline.evaluation.review.counts import Outcome, count
from tuneline.evaluation.review.votes import Cast, sort_votes
from tuneline.evidence import Breach, Evidence, Measurement, measure
from tuneline.people.ballots import FOLDER, ballots, documents
from tuneline.step_context import StepContext


def contradictions(
    pairs: Sequence[ReviewPair],
    key: Sequence[KeyEntry],
    answers: Mapping[str, Mapping[str, str]],
) -> list[int]:
    """Return the pairs that do not show the answers which the key says they show.

    Args:
        pairs: the pairs as people saw them.
        key: the models behind their sides.
        answers: the answers of each model by row id.
    """
    entries = {entry.pair: entry for entry in key}
    wrong = []
    for pair in pairs:
        entry = entries.get(pair.pair)
        if entry is None or any(
            shown_as(answers.get(entry.row_id, {}).get(side, "")) != text
            for side, text in ((entry.A, pair.A), (entry.B, pair.B))
        ):
            wrong.append(pair.pair)
    return wrong


def run(ctx: StepContext) -> Evidence:
    """Count the votes that reviewers left, or say that there are none."""
    cast = ballots(ctx.run)
    short = _too_few(ctx)
    if not cast:
        nothing = measure("votes", 0, "votes", ">=", 1, on_breach=short)
        return ctx.conclude(f"not reviewed: {_why_not(ctx)}", [nothing])
    key = REVIEW_KEY.read(ctx)
    shown = REVIEW_PAIRS.read(ctx)
    for document in documents(ctx.run):
        document.note(ctx)
    wrong = contradictions(shown.pairs, key.pairs, answers_by_row(ctx))
    if key.review_id != shown.review_id or wrong:
        return _refused(ctx, wrong, same_review=key.review_id == shown.review_id)
    where = ctx.run.store.uri_of(ctx.run.key(FOLDER))
    votes = sort_votes(cast, key.review_id, key.pairs, ctx.config.evaluation.reviewer_names, where)
    COUNTED_VOTES.write(
        ctx,
        ReviewVotes(
            review_id=key.review_id,
            votes=votes.people,
            comments=votes.comments,
        ),
    )
    return _judged(ctx, votes, key, [pair.pair for pair in shown.pairs])


def _why_not(ctx: StepContext) -> str:
    if not ctx.config.evaluation.review:
        return "the review is switched off"
    sheet = REVIEW_PAIRS.find(ctx.run)
    if sheet is not None and not sheet.pairs:
        return "both models answer every row alike, so that there is nothing to prefer"
    return "nobody answered"


def _too_few(ctx: StepContext) -> Breach:
    """Return what too few votes do to the verdict."""
    required = ctx.config.evaluation.review_required
    if required is None:
        required = ctx.config.profile == "production" and ctx.config.evaluation.review
    return "fail" if required else "warn"


def _refused(ctx: StepContext, wrong: Sequence[int], *, same_review: bool) -> Evidence:
    what = (
        f"pairs {', '.join(map(str, wrong))} show" if wrong else "the pairs of another review show"
    )
    return ctx.conclude(
        f"no vote was counted: {what} other answers than the key says, so that nobody knows what "
        "the votes prefer; run prepare_review and the review again",
        [
            measure("pairs_that_contradict_the_key", len(wrong), "pairs", "==", 0),
            measure("key_is_of_this_review", same_review, "flag", "==", True),
        ],
    )


def _judged(ctx: StepContext, votes: Cast, key: ReviewKey, shown: Sequence[int]) -> Evidence:
    settings = ctx.config.evaluation
    entries = {entry.pair: entry for entry in key.pairs}
    base = {pair: entry for pair, entry in entries.items() if entry.other == "base"}
    released = {pair: entry for pair, entry in entries.items() if entry.other == "released"}
    measured = [
        *judgement.participation(votes.people, shown, settings.votes_per_pair, _too_few(ctx)),
        *_left_out(votes),
        measure("sign_test_level", settings.review_alpha, "p"),
    ]
    if not votes.people:
        return ctx.conclude(f"not reviewed: no vote counts{votes.left_out()}", measured)
    sentences = []
    against_base = count(votes.people, base)
    if against_base.pairs:
        measured += judgement.against_base(against_base, settings.review_alpha)
        sentences.append(_sentence(against_base, "base", settings.review_alpha))
    against_released = count(votes.people, released)
    if against_released.pairs:
        measured += judgement.against_released(against_released, settings.review_alpha)
        sentences.append(_sentence(against_released, "released model", settings.review_alpha))
    agreed = judgement.agreement(votes.people, entries)
    summary = "; ".join(filter(None, [*sentences, _agreement_sentence(agreed)]))
    return ctx.conclude(summary + votes.left_out(), [*measured, *agreed])


def _left_out(votes: Cast) -> list[Measurement]:
    from_files = sum(vote.source in ("csv", "argilla") for vote in votes.people)
    return [
        measure("votes_from_files", from_files, "votes"),
        measure("votes_of_earlier_reviews", votes.of_earlier_reviews, "votes"),
        measure("votes_not_assigned", sum(votes.unassigned.values()), "votes"),
    ]


def _sentence(outcome: Outcome, other: str, alpha: float) -> str:
    names = ", ".join(outcome.reviewers)
    bad = f" ({outcome.both_bad} of them with both answers bad)" if outcome.both_bad else ""
    found = (
        f"{names} preferred the tuned model on {outcome.wins} of {outcome.pairs} pairs and the "
        f"{other} on {outcome.losses}, {outcome.ties} tied{bad}; win rate "
        f"{outcome.win_rate.text()}, sign test p = {outcome.p_value:.3f}"
    )
    if outcome.preferred(alpha, other) != "neither":
        return found
    if outcome.wins <= outcome.losses:
        return f"{found}, which is no preference for the tuned model"
    return (
        f"{found}, which chance could explain at the level {alpha:g}: about "
        f"{outcome.pairs_needed(alpha)} pairs would decide with a probability of 80 %"
    )


def _agreement_sentence(agreed: Sequence[Measurement]) -> str:
    values = {entry.name: entry.value for entry in agreed}
    alpha = values.get("krippendorff_alpha")
    if alpha is None:
        return ""
    return (
        f"reviewers agree with Krippendorff's alpha = {alpha} on "
        f"{values['pairs_with_several_votes']} pairs"
    )
