"""Messages to people: failed gates, waiting questions, drift, releases, spending.

Where they go stands in the model's file, as names of Airflow connections; the providers' own
notifiers send them. A message that can't be sent is a line in the log and fails nothing.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from typing import Any, Literal

from airflow.sdk import BaseNotifier

from tuneline.config import Model
from tuneline.config.model_file import NotifyConfig

Event = Literal["failure", "question", "drift", "release", "budget"]

_TITLES: dict[Event, str] = {
    "failure": "{task} failed",
    "question": "{task} waits for an answer",
    "drift": "production drifted",
    "release": "a new version is released",
    "budget": "the month's budget is spent",
}

_log = logging.getLogger(__name__)


class Announce(BaseNotifier):
    """A notifier of Airflow that sends one kind of event wherever the model's file says.

    Without a text it takes the exception of a failed task.
    """

    def __init__(self, event: Event, model: Model, text: str | None = None) -> None:
        super().__init__()
        self.event: Event = event
        self.model = model.name
        self.wanted = model.file.notify
        self.text = text

    def notify(self, context: Any) -> None:
        """Send the message to each place."""
        if self.event not in self.wanted.events:
            return
        message = _message(self.event, self.model, self.text, context)
        for place, notifier in _notifiers(self.wanted, message):
            try:
                notifier.notify(context)
            except Exception as error:
                # Its text may hold the address of a webhook, which is a secret.
                _log.warning("no message over %s: %s", place, type(error).__name__)


def announcers(event: Event, model: Model) -> list[Announce]:
    """Return the notifiers of an event, none if the model's file names no place."""
    wanted = model.file.notify
    return [Announce(event, model)] if wanted.slack or wanted.email or wanted.webhook else []


def _message(event: Event, model: str, text: str | None, context: Any) -> dict[str, str]:
    ti = context["ti"]
    if text is None:
        text = str(context.get("exception") or context.get("reason") or "")
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        "event": event,
        "model": model,
        "title": f"{model}: {_TITLES[event].format(task=ti.task_id)}",
        "text": "\n".join(lines[:5]),
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "task_id": ti.task_id,
        "url": str(getattr(ti, "log_url", "")),
    }


def _notifiers(wanted: NotifyConfig, message: dict[str, str]) -> Iterator[tuple[str, BaseNotifier]]:
    """Yield the notifier of each place; providers are imported when there is something to send."""
    parts = (message["title"], message["text"], message["url"])
    if wanted.slack:
        from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

        # Slack treats &, < and > as control characters.
        safe = [html.escape(part, quote=False) for part in parts]
        text = "\n".join(filter(None, (f"*{safe[0]}*", *safe[1:])))
        yield (
            f"Slack ({wanted.slack})",
            SlackWebhookNotifier(slack_webhook_conn_id=wanted.slack, text=text),
        )
    if wanted.email:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        body = "".join(f"<p>{html.escape(part)}</p>" for part in parts if part)
        yield (
            f"e-mail ({wanted.email_connection})",
            SmtpNotifier(
                to=wanted.email,
                subject=message["title"],
                html_content=body,
                smtp_conn_id=wanted.email_connection,
            ),
        )
    if wanted.webhook:
        from airflow.providers.http.notifications.http import HttpNotifier

        yield (
            f"a webhook ({wanted.webhook})",
            HttpNotifier(http_conn_id=wanted.webhook, json=dict(message)),
        )
