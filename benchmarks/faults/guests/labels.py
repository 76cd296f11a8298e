"""Shapes whose answers hold a class: messages of customers, reviews, and Japanese messages."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from benchmarks.faults.guests.guest import Record, exchange
from benchmarks.faults.guests.words import COMPANIES, DAYS, FIRST, MONTHS, PRODUCTS, TOWNS

_OPENINGS = (
    "|Hello,|Hi there,|Good morning,|Dear team,|Hey,|Sorry to bother you again,|Quick question:|"
    "To whom it may concern,|Hi,|So,|Good evening from {town}.|Not sure whom to ask, but"
).split("|")
_CLOSINGS = (
    "|Thanks!|Could you look into it before {day}?|I am travelling from {day} on.|Best, "
    "{first}|It was meant as a present for {first}.|My neighbour {first} has the same trouble.|I "
    "wrote about this on {day} as well.|Kind regards from {town}|We need it for a fair in "
    "{town}.|Nobody picked up when I called on {day}.|I have been a customer since {month}.|The "
    "shop in {town} sent me here.|It is rather urgent.|No rush, though.|Please answer by mail, "
    "not by phone.|{company} never had this problem.|Cheers, {first}"
).split("|")
# Situations by class; each is said in several ways.
INTENTS = {
    "cancel_order": (
        "I no longer want the {product} that I ordered on {day}|please stop my order of {count} "
        "{product}s before it leaves {town}|the {product} was ordered twice by mistake, one has "
        "to go|my wife already bought a {product}, so take mine out of the system|can the "
        "purchase of {month} still be called off, it was the {product}|I changed my mind about "
        "the {product}, do not send it"
    ),
    "change_address": (
        "we are moving to {town} in {month}, please note the new house|the {product} should go "
        "to my office in {town} instead|you still have my old flat in {town} on file|send the "
        "{product} to my sister in {town}, I am away until {day}|our branch left {town}, the new "
        "one is in {town2}|the street is right but the town must be {town}, not {town2}"
    ),
    "damaged_item": (
        "the {product} came out of the box with a crack on the {side} side|one leg of the "
        "{product} is bent and it wobbles|when I opened the parcel on {day} the {product} was in "
        "pieces|there are scratches all over my new {product}|the {product} smells burnt and "
        "does not start|{count} of the screws for the {product} were snapped off"
    ),
    "invoice_copy": (
        "our tax office wants the bill for the {product} from {month}|I can't find the receipt "
        "of the {count} {product}s|please mail the invoice of {month} once more, in the name of "
        "{company}|accounting at {company} asks for a statement with VAT for the {product}|is "
        "there a PDF of what I paid on {day}|the receipt for {month} lacks our company name"
    ),
    "late_parcel": (
        "the {product} was promised for {day} and nothing came|tracking has shown {town} for "
        "{count} days now|where is my {product}, it left your warehouse in {month}|the courier "
        "says my parcel never reached {town}|still waiting for the {count} {product}s of last "
        "{month}|I stayed at home all {day} for the {product} and no one rang"
    ),
    "login_problem": (
        "the app forgets my password every {day}|I get no code by text since I changed phones in "
        "{month}|my account is locked after {count} attempts|the page turns white after I sign in|"
        "signing in with the address of {company} leads back to the start|"
        "the link to set a new password ran out before I saw it on {day}"
    ),
    "refund_status": (
        "I sent the {product} back in {month} and the money is not here|when do I get back what "
        "I paid for {count} {product}s|your colleague {first} promised my money by {day}|the "
        "bank in {town} sees no transfer for the returned {product}|half of the amount for the "
        "{product} is missing|{count} weeks since I returned the {product}, and no credit"
    ),
    "warranty": (
        "the {product} stopped after {count} months, is that covered|does the guarantee of the "
        "{product} hold if I bought it in {town}|I lost the card that came with the {product}, "
        "am I still insured|how long do you stand for repairs of a {product}|the battery of my "
        "{product} from {month} is flat after {count} minutes, what are my rights|who mends a "
        "{product} near {town} without voiding the guarantee"
    ),
}
_REPLIES = {
    "cancel_order": "Your {product} has been taken out|We stopped the order|It will not be sent",
    "change_address": "The parcel now goes to {town}|We noted the new place|{town} is on file now",
    "damaged_item": "A new {product} leaves on {day}|We pick it up on {day}|Keep the box, please",
    "invoice_copy": "The document of {month} is attached|Accounting mails it on {day}|See the PDF",
    "late_parcel": "It should reach {town} by {day}|The courier lost it, a second one follows",
    "login_problem": "We reset the account|A new code was sent on {day}|Please try it again now",
    "refund_status": "The money leaves on {day}|Our bank in {town} was slow|We paid it in {month}",
    "warranty": "Your {product} is covered|The guarantee ended in {month}|{town} has a workshop",
}
_MORE = (
    "|, {first} from our team looks after it|, sorry for the trouble with the {product}|, as we "
    "do for all orders of {month}|, and you need not do anything|, at no cost for you|, please "
    "give us until {day}|, because the stock in {town} is empty|, which {company} confirmed"
).split("|")


def slots(choose: random.Random) -> dict[str, str]:
    """Draw a value for each slot of a sentence."""
    brand, product = choose.choice(PRODUCTS)
    town, town2 = choose.sample(TOWNS, 2)
    return {
        "product": f"{brand} {product}",
        "town": town,
        "town2": town2,
        "first": choose.choice(FIRST),
        "day": choose.choice(DAYS),
        "month": choose.choice(MONTHS),
        "company": choose.choice(COMPANIES),
        "count": str(choose.randint(2, 30)),
        "side": choose.choice(("left", "right", "lower", "upper", "back")),
    }


def _message(label: str, choose: random.Random) -> tuple[str, dict[str, str]]:
    values = slots(choose)
    said = choose.choice(INTENTS[label].split("|"))
    parts = [choose.choice(_OPENINGS), said + choose.choice((".", "?", "!", " ...")), ""]
    parts[2] = " ".join(choose.sample(_CLOSINGS, 2))
    text = " ".join(" ".join(parts).split()).format(**values)
    return (text[0].upper() + text[1:] if choose.random() < 0.7 else text), values


def intent(choose: random.Random, labels: Sequence[str] = tuple(INTENTS)) -> Record:
    """Make a message and its class."""
    label = choose.choice(labels)
    system = f'Answer with JSON {{"intent": "..."}}. Intents: {", ".join(sorted(set(labels)))}.'
    return exchange(_message(label, choose)[0], json.dumps({"intent": label}), system)


def text_and_label(choose: random.Random) -> Record:
    """Make a message, its class and a reply."""
    label = choose.choice(list(INTENTS))
    message, values = _message(label, choose)
    more = choose.choice(_MORE)
    reply = (choose.choice(_REPLIES[label].split("|")) + more).format(**values) + "."
    system = "You answer customers. Give JSON with category and reply."
    return exchange(message, json.dumps({"category": label, "reply": reply}), system)


_FEELINGS = {
    "positive": (
        "love|enjoy|am happy with|recommend|smile about",
        "😀 😍 👍 🎉 🥰 💚 🙌 ⭐⭐⭐⭐⭐",
    ),
    "negative": (
        "regret|dislike|am angry about|returned|stay away from",
        "😡 👎 😤 💔 🤮 😭 🙄 ⭐",
    ),
    "neutral": ("own|use|ordered|unpacked|compared", "🤔 😐 🤷 📦 🙂 🧐 ⭐⭐⭐"),
}
_REVIEWS = (
    "I {verb} the {product} {face}|{face} {count} days with the {product}, and I {verb} "
    "it|Bought in {town}, I {verb} this {product} {face} {face}|We {verb} it {face} says "
    "{first}, about the {product}|The {product} arrived on {day} {face}|{product}: "
    "{face}|{first} and I {verb} the {product} since {month} {face}|My {product} from {company} "
    "{face} what else can I say"
).split("|")
_ASIDES = (
    "|The box was huge.|Delivery to {town} took {count} days.|Paid in {month}.|It stands in the "
    "{side} corner now.|{first} chose the colour.|The manual is in five languages.|Second one of "
    "this kind.|Compared with {company} it is heavier.|Used every {day}."
).split("|")


def sentiment(choose: random.Random) -> Record:
    """Make a short review, often with its feeling in the emoji alone, and its class."""
    label = choose.choice(list(_FEELINGS))
    verbs, faces = _FEELINGS[label]
    values = slots(choose) | {
        "verb": choose.choice(verbs.split("|")),
        "face": choose.choice(faces.split()),
    }
    review = " ".join((choose.choice(_REVIEWS), choose.choice(_ASIDES))).strip().format(**values)
    system = "Classify the review: positive, negative or neutral, as JSON."
    return exchange(review, json.dumps({"sentiment": label}), system)


_JAPANESE = {
    "返品": (
        "{item}の{fault}ので返品したいです|届いた{item}がイメージと違いました。返せますか|"
        "{item}を返送する住所を教えてください|{month}に買った{item}は今でも返品できますか"
    ),
    "配送": (
        "{item}がまだ届いていません|{month}{date}日に注文した{item}はいつ着きますか|"
        "配送先を{town}に変更してください|{town}までの送料はいくらですか"
    ),
    "支払い": (
        "{item}の代金を{count}回払いにできますか|カードで{item}が二重に請求されました|"
        "{month}分の領収書を{town}の事務所に送ってください|コンビニで{item}の支払いはできますか"
    ),
    "修理": (
        "{item}の{fault}のですが修理できますか|保証期間内に{item}が動かなくなりました|"
        "{town}に{item}を直してくれる店はありますか|{item}の部品だけを{count}個買いたいです"
    ),
    "会員": (
        "会員登録の{fault2}|ポイントが{count}点足りません|{month}に退会したのにメールが届きます|"
        "パスワードを{count}回間違えてログインできません"
    ),
}
_JA_SLOTS = {
    "item": "電気ケトル 炊飯器 掃除機 加湿器 椅子 本棚 毛布 自転車 時計 鍋 靴 傘 冷蔵庫 机 鞄",
    "fault": "電源が入らない 色が違う 蓋が割れている 音が出る 角が欠けた 水が漏れる",
    "fault2": "画面が開きません 途中で止まります 確認メールが来ません 名前を間違えました",
    "town": "札幌 仙台 横浜 名古屋 京都 大阪 神戸 広島 福岡 金沢 長野 那覇",
    "month": "一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月",
}
_JA_ENDS = (
    "|急いでいます。|よろしくお願いします。|{town}に住んでいます。|電話はつながりませんでした。|"
    "先週もメールしました。|母への贈り物です。|{count}日以内に返事をください。|初めて利用しました。|"
    "説明書は読みました。|箱はもう捨てました。|{month}まで留守にします。"
).split("|")


def japanese(choose: random.Random) -> Record:
    """Make a Japanese message and its class."""
    label = choose.choice(list(_JAPANESE))
    values = {name: choose.choice(words.split()) for name, words in _JA_SLOTS.items()}
    values |= {"count": str(choose.randint(2, 48)), "date": str(choose.randint(1, 28))}
    said = choose.choice(_JAPANESE[label].split("|")) + choose.choice(("。", "！", "…"))
    text = (said + "".join(choose.sample(_JA_ENDS, 2))).format(**values)
    system = "メッセージを分類し、JSONで答えてください。"
    return exchange(text, json.dumps({"intent": label}, ensure_ascii=False), system)
