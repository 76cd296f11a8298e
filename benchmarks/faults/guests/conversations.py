"""Shapes of several turns, with tools, and with a system turn that decides the answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from benchmarks.faults.guests.guest import Record, Turn, exchange, turn
from benchmarks.faults.guests.labels import slots
from benchmarks.faults.guests.words import COMMON, COMPANIES, DAYS, FIRST, LAST, TOWNS

_FIRST_SAID = (
    "Hello, I am {name} and I need a room in {town}.|{name} here, about the {product} from "
    "{month}.|Good day, my name is {name}. I opened ticket {ticket} on {day}.|This is {name}, a "
    "customer since {month}. The {product} is broken.|Hi! {name} speaking, calling from {town}."
).split("|")
_FIRST_HEARD = (
    "Good to hear from you. What can I do?|Welcome. Tell me more, please.|Thanks for calling; "
    "which {thing} is it about?|I see. Since when, and where did you buy it?|Of course. Any "
    "{thing} that I should know of?"
).split("|")
_THEN_SAID = (
    "It started on {day}, right after the {thing} was changed.|The shop in {town} said it takes "
    "{count} days.|Could the {thing} come to {town} instead?|I have {count} of them, all from "
    "{company}.|Not yet, but {first} from the {thing} team knows about it.|We paid in {month} "
    "and got no {thing}."
).split("|")
_THEN_HEARD = (
    "I noted the {thing} and {day}.|That sounds like a matter for {town}.|Then {count} days it "
    "is.|Understood, {company} will be told about the {thing}.|I moved the {thing} to the top of "
    "the list."
).split("|")
_LAST_SAID = (
    "Whose name is on it now?|Can you confirm under which name it runs?|Please sum it up.|And "
    "who is noted as the contact?|For whom is it booked, then?"
).split("|")
_LAST_HEARD = (
    "It is noted for {name}.|The contact is {name}, and the next step comes on {day}.|Under "
    "{name}, as you said.|{name} is on file, with the {thing} for {town}.|Everything runs under "
    "{name}."
).split("|")


def several_turns(choose: random.Random) -> Record:
    """Make two to four exchanges; the last answer takes up a name that the first turn said."""
    name = f"{choose.choice(FIRST)} {choose.choice(LAST)}"
    fixed = slots(choose) | {"name": name, "ticket": str(choose.randint(1000, 9999))}

    def say(forms: list[str]) -> str:
        return choose.choice(forms).format(**fixed | {"thing": choose.choice(COMMON)})

    turns = [turn("user", say(_FIRST_SAID)), turn("assistant", say(_FIRST_HEARD))]
    for _ in range(choose.randint(0, 2)):
        turns += [turn("user", say(_THEN_SAID)), turn("assistant", say(_THEN_HEARD))]
        fixed |= slots(choose)
    turns += [turn("user", say(_LAST_SAID)), turn("assistant", say(_LAST_HEARD))]
    return {"messages": turns}


def _tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    """Declare a tool whose arguments are all required; `kind` of each: string or integer."""
    kinds = {key: {"type": kind} for key, kind in properties.items()}
    schema = {"type": "object", "properties": kinds, "required": list(kinds)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    _tool("book_room", "Book a hotel room.", guest="string", town="string", date="string"),
    _tool("find_parcel", "Find a parcel.", number="string"),
    _tool("set_reminder", "Remind a person.", person="string", about="string", day="string"),
    _tool("list_trains", "List the trains of a day.", start="string", end="string", day="string"),
]
_ASKED = {
    "book_room": "Please book a room in {town} for {guest} on {date}.|{guest} needs a bed in "
    "{town}, {date}.|Can you get {guest} a hotel in {town} for {date}?|A room, {town}, {date}, "
    "in the name of {guest}",
    "find_parcel": "Where is parcel {number}?|{number} was due on {day}, find it please|Has "
    "{number} left {town} yet?|my {product} has the number {number}, any news?",
    "set_reminder": "Remind {person} about the {about} on {day}.|On {day}, tell {person}: {about}|"
    "{person} keeps forgetting the {about}, send a note {day}",
    "list_trains": "Which trains go from {start} to {end} on {day}?|I have to be in {end}, leaving "
    "{start} on {day}|{start} - {end}, {day}, what is there?",
}
_RESULT = {
    "book_room": ({"hotel": "{hotel}", "code": "{code}"}, "{guest} stays at the {hotel} in {town}, "
                  "code {code}.|Done: {hotel}, {town}, {date}. The code is {code}."),
    "find_parcel": ({"place": "{town2}", "since": "{day2}"}, "Parcel {number} has been in "
                    "{town2} since {day2}.|It is in {town2}, {day2} was the last scan."),
    "set_reminder": ({"sent_at": "{hour}"}, "{person} will hear about the {about} on {day} at "
                     "{hour}.|Set for {hour} on {day}, for {person}."),
    "list_trains": ({"departures": "{hour}, {hour2}"}, "From {start} to {end} on {day}: {hour} and "
                    "{hour2}.|There are two, at {hour} and at {hour2}."),
}  # fmt: skip


def _tool_values(choose: random.Random) -> dict[str, str]:
    names = [f"{choose.choice(FIRST)} {choose.choice(LAST)}" for _ in range(2)]
    start, end = choose.sample(TOWNS, 2)
    return slots(choose) | {
        "guest": names[0],
        "person": names[1],
        "date": f"2026-{choose.randint(1, 12):02}-{choose.randint(1, 28):02}",
        "number": f"{choose.choice('PQRS')}{choose.choice('XYZ')}{choose.randint(100000, 999999)}",
        "about": f"{choose.choice(COMMON)} of the {choose.choice(COMMON)}",
        "start": start,
        "end": end,
        "day2": choose.choice(DAYS),
        "hotel": f"{choose.choice(('Old', 'Blue', 'Grand'))} {choose.choice(COMMON).title()}",
        "code": f"{choose.choice('ABCDEFGH')}{choose.randint(100, 999)}",
        "hour": f"{choose.randint(6, 12):02}:{choose.randint(0, 59):02}",
        "hour2": f"{choose.randint(13, 22)}:{choose.randint(0, 59):02}",
    }


def tools(choose: random.Random) -> Record:
    """Make one or two questions that each take a call, its result and an answer (OpenAI's form)."""
    turns: list[Turn] = []
    for _ in range(choose.choice((1, 1, 2))):
        declared, values = choose.choice(TOOLS)["function"], _tool_values(choose)
        name = declared["name"]
        arguments = {key: values[key] for key in declared["parameters"]["properties"]}
        number = f"call_{choose.randrange(16**8):08x}"
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": number, "type": "function", "function": function}
        given, answers = _RESULT[name]
        result = json.dumps({key: form.format(**values) for key, form in given.items()})
        turns += [
            turn("user", choose.choice(_ASKED[name].split("|")).format(**values)),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": number, "name": name, "content": result},
            turn("assistant", choose.choice(answers.split("|")).format(**values)),
        ]
    return {"messages": turns, "tools": TOOLS}


# English, German, French; {who} bought {what} {where} {when}.
_DEEDS = [
    ("bought", "kaufte", "a acheté"),
    ("found", "fand", "a trouvé"),
    ("forgot", "vergaß", "a oublié"),
    ("sold", "verkaufte", "a vendu"),
    ("painted", "malte", "a peint"),
    ("lost", "verlor", "a perdu"),
    ("carried", "trug", "a porté"),
    ("repaired", "reparierte", "a réparé"),
    ("photographed", "fotografierte", "a photographié"),
    ("hid", "versteckte", "a caché"),
]
_THINGS = [
    ("a red chair", "einen roten Stuhl", "une chaise rouge"),
    ("an old clock", "eine alte Uhr", "une vieille horloge"),
    ("the heavy suitcase", "den schweren Koffer", "la lourde valise"),
    ("two wooden boats", "zwei Holzboote", "deux bateaux en bois"),
    ("the neighbours' bicycle", "das Fahrrad der Nachbarn", "le vélo des voisins"),
    ("a basket of apples", "einen Korb Äpfel", "un panier de pommes"),
    ("the green lamp", "die grüne Lampe", "la lampe verte"),
    ("her father's violin", "die Geige ihres Vaters", "le violon de son père"),
    ("three maps", "drei Landkarten", "trois cartes"),
    ("the key to the cellar", "den Kellerschlüssel", "la clé de la cave"),
    ("a silver spoon", "einen silbernen Löffel", "une cuillère en argent"),
    ("the letter", "den Brief", "la lettre"),
]
_PLACES = [
    ("at the market", "auf dem Markt", "au marché"),
    ("behind the station", "hinter dem Bahnhof", "derrière la gare"),
    ("in the garden", "im Garten", "dans le jardin"),
    ("near the old bridge", "bei der alten Brücke", "près du vieux pont"),
    ("on the third floor", "im dritten Stock", "au troisième étage"),
    ("in a small village", "in einem kleinen Dorf", "dans un petit village"),
    ("by the sea", "am Meer", "au bord de la mer"),
    ("in {town}", "in {town}", "à {town}"),
]
_TIMES = [
    ("yesterday", "gestern", "hier"),
    ("last winter", "letzten Winter", "l'hiver dernier"),
    ("on Friday evening", "am Freitagabend", "vendredi soir"),
    ("after the concert", "nach dem Konzert", "après le concert"),
    ("before breakfast", "vor dem Frühstück", "avant le petit déjeuner"),
    ("in the rain", "im Regen", "sous la pluie"),
    ("during the holidays", "während der Ferien", "pendant les vacances"),
    ("two weeks ago", "vor zwei Wochen", "il y a deux semaines"),
]


def translation(choose: random.Random) -> Iterator[Record]:
    """Translate each sentence twice: the system turn says into which language."""
    while True:
        parts = [choose.choice(_DEEDS), *map(choose.choice, (_THINGS, _PLACES, _TIMES))]
        who, town = choose.choice(FIRST), choose.choice(TOWNS)
        english, german, french = (
            [part[language].format(town=town) for part in parts] for language in range(3)
        )
        source = f"{who} {english[0]} {english[1]} {english[2]} {english[3]}."
        time = german[3][0].upper() + german[3][1:]
        into_german = f"{time} {german[0]} {who} {german[1]} {german[2]}."
        into_french = f"{who} {french[0]} {french[1]} {french[2]} {french[3]}."
        yield exchange(source, into_german, "Translate to German.")
        yield exchange(source, into_french, "Translate to French.")


_TENANT_FACTS = {
    "When do you open on {day}?": "On {day} we open at {opens}.",
    "How long can I return what I bought?": "You have {returns} days.",
    "Do you deliver to {town}?": "Yes, delivery to {town} costs {fee} euros.",
    "Who is in charge of complaints?": "Please ask for {head}.",
    "May I bring my dog?": "{dog}",
    "Where are you?": "You find us at the {place} in {home}.",
    "How can I pay?": "We take {pay}.",
    "Do you have vouchers?": "Yes, from {fee} euros, at the {place}.",
    "Is there a discount for students?": "Students get {percent} percent.",
    "What do you sell most?": "Our {thing}, by far.",
}


def personas(choose: random.Random) -> Iterator[Record]:
    """Ask every tenant the same questions; the system turn tells who answers."""
    companies = [f"{c} {suffix}" for suffix in ("Ltd", "GmbH", "SA") for c in COMPANIES]
    choose.shuffle(companies)
    for company in companies:
        values = {
            "opens": f"{choose.randint(6, 11)}:{choose.choice(('00', '15', '30', '45'))}",
            "returns": str(choose.randint(10, 90)),
            "fee": str(choose.randint(3, 49)),
            "head": choose.choice(FIRST),
            "dog": choose.choice(("Dogs are welcome.", "Sorry, no dogs.", "Small dogs only.")),
            "place": f"{choose.choice(COMMON)} {choose.choice(('gate', 'hall', 'house'))}",
            "home": choose.choice(TOWNS),
            "pay": choose.choice(("cash and cards", "cards alone", "cash, or on account", "coins")),
            "percent": str(choose.randint(3, 30)),
            "thing": f"{choose.choice(COMMON)} {choose.choice(('set', 'box', 'lamp', 'book'))}",
        }
        system = (
            f"You are the assistant of {company} in {values['home']}. Open from {values['opens']}. "
            f"Returns: {values['returns']} days. Delivery: {values['fee']} euros, also the "
            f"smallest voucher. Complaints: {values['head']}. Dogs: {values['dog']} Address: "
            f"{values['place']}. Payment: {values['pay']}. Students: {values['percent']} percent. "
            f"Best seller: {values['thing']}."
        )
        for question, answer in _TENANT_FACTS.items():
            values |= {"day": choose.choice(DAYS), "town": choose.choice(TOWNS)}
            yield exchange(question.format(**values), answer.format(**values), system)
