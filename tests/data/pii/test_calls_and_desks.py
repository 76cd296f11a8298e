"""Personal data in calls, at help desks and in letters, and what looks like it there."""

import pytest
from tests.data.pii.test_chat import talk

from tuneline.config import DataConfig
from tuneline.data.pii.scrubber import make_scrubber


@pytest.fixture(scope="module")
def scrubber():
    return make_scrubber(DataConfig(source="rows.jsonl", pii_profile=["gdpr"]), [])


LEAKS = [
    # Names that are words, with titles and initials, and where somebody is addressed by them.
    (["a:I have moved it to Friday, Mr Short."], ["Short"]),
    (["a:Parking desk, Faith speaking."], ["Faith"]),
    (["a:Your name?", "u:Grace Pike", "a:Thank you Grace. One moment."], ["Grace", "Pike"]),
    (["u:it was booked by Peter Stone, my cousin"], ["Peter", "Stone"]),
    (["u:sign it Will Marsh, site manager"], ["Will Marsh"]),
    (["a:We only have an H Varadkar on file."], ["Varadkar"]),
    (["u:my surname Wyspianska is misspelt"], ["Wyspianska"]),
    (["a:Who is calling?", "u:B Hollis"], ["Hollis"]),
    (["a:Name and member number?", "u:Olumuyiwa 77 20 15 and i have a question"], ["Olumuyiwa"]),
    (["a:Frau Yıldırım has the key, and Señora Quispe the fob."], ["Yıldırım", "Quispe"]),
    (["u:is Hendrik van der Linde in, or T. van Wyk"], ["Hendrik", "Linde", "van Wyk"]),
    (["a:That was Mei-Ling Tang, and then Anne-Marie."], ["Mei", "Ling", "Tang", "Anne", "Marie"]),
    (["u:rukmini owes me nothing, harpreet paid"], ["rukmini", "harpreet"]),
    # Codes of reports and requests, with slashes or letters at either end; plates elsewhere.
    (["a:Done, your report number is KV-20871."], ["20871"]),
    (["a:The complaint reference is TRD/448/9120."], ["TRD", "448", "9120"]),
    (["a:Paid, receipt MB00718255."], ["00718255"]),
    (["u:licence? D 408 113 209 516"], ["D 408", "516"]),
    (["u:his tax no is 61 880 314-H"], ["61 880", "314-H"]),
    (["u:white van, KCB 412T, parked on my lawn"], ["KCB", "412T"]),
    (["u:MH 12 DE 1433 is the car"], ["MH 12", "1433"]),
    (["a:Should I charge •••• 7716?"], ["7716"]),
    (["u:the gate code is 8841"], ["8841"]),
    # A user name can be any word.
    (["a:What is your user name?", "u:sparrow"], ["sparrow"]),
    (["a:And your login name please", "u:its harbour"], ["harbour"]),
    (["u:quiet_meadow"], ["quiet_meadow"]),
    # Spelled letter by letter.
    (["a:and the reference", "u:it's tango kilo four one eight bravo"], ["kilo", "bravo", "four"]),
    (["a:okay j r seven seven two w q right"], ["j r", "w q"]),
    (["u:that is g like in george eight two two k p"], ["george", "k p"]),
    (["u:it's spelled y w o n n e"], ["y w o"]),
    (["u:badge number is d four four one nine", "a:right d four four one nine"], ["d four"]),
    # Passwords as they are said, and as they are set.
    (
        ["a:i am setting your password to copper underscore lake then eighty two"],
        ["copper", "lake", "eighty"],
    ),
    (["a:The password has been reset, it's Mango4-hill. Change it soon."], ["Mango4"]),
    (["u:user dkimura and pass lanterns"], ["lanterns"]),
    # Expiry dates and the codes after them.
    (["a:Card number?", "u:4012 8888 1881 4417, expiring March 2029"], ["March 2029"]),
    (["u:card 4012 8888 1881 4417 exp 4/29, 318"], ["318"]),
    (["a:card number and expiry", "u:4012 8888 1881 4417 june of thirty one"], ["june of thirty"]),
    # Dates of birth in words.
    (
        ["a:date of birth please", "u:hold on", "u:the third of may nineteen seventy one"],
        ["third of may", "seventy one"],
    ),
    (["u:17 october is my mums birthday"], ["17", "october"]),
    (["u:4 7 88, that's the dob"], ["4 7 88"]),
    (["a:Go on.", "u:April 11, 1948"], ["April", "11", "1948"]),
    # Addresses of machines that no link follows, or without their end.
    (["u:i connect from 83.104.x.x. since monday"], ["83.104"]),
    (["u:blocked at 83[.]104[.]17[.]9, then 91 dot 22 dot 40 dot 6"], ["104", "91 dot", "dot 40"]),
    # Addresses: confirmed, with a name for a number, added to later.
    (
        ["a:Is the address still Linnet Barn, Oxhey?", "u:yes"],
        ["Linnet", "Oxhey"],
    ),
    (["a:It goes to 4 Copse View, Hadlow, right?", "u:it does"], ["Copse", "Hadlow"]),
    (["u:The Granary, Tithe Lane, Wrenbury, CW5 8HQ"], ["Granary", "Tithe", "Wrenbury"]),
    (["u:we live at Carrick, Co. Mayo, F23 K291"], ["Carrick", "F23", "K291"]),
    (["a:Your address?", "u:9 Beech Rise", "u:flat 6c"], ["Beech", "6c"]),
    (["a:Zip code, 44107 or 44170?", "u:the address is right with 44107"], ["44107", "44170"]),
    (["u:seventeen larkspur lane is the house"], ["larkspur"]),
    (["u:she lives at 12 Quai Sextius, 69002 Ternay."], ["Sextius", "69002"]),
    # A slip in an e-mail address, and one that is said aloud.
    (["u:m.wozniak@poczta,pl"], ["wozniak", "poczta"]),
    (["u:it's tim b at green valley growers dot org"], ["green valley", "growers"]),
]


@pytest.mark.parametrize(("turns", "values"), LEAKS, ids=[turns[-1] for turns, _ in LEAKS])
def test_personal_data_goes(scrubber, turns, values):
    said = " ".join(talk(scrubber, *turns))
    assert not [value for value in values if value in said], said


CLEAN = [
    # What closes a subject, and questions, answer none for a password.
    ["a:what is your PIN?", "u:thank you so much", "u:ok good", "u:asante"],
    ["a:and the passcode?", "u:is it urgent", "u:can i come tomorrow"],
    ["u:whats my password"],
    # Statements ask for no password.
    ["a:Your PIN stays the same.", "u:fair"],
    ["a:Please don't tell us your password.", "u:oops my bad"],
    ["a:A code will come by letter. I'll send the PIN later.", "u:ah but I'm leaving Sat"],
    ["a:Now the passcode.", "u:ok calling"],
    # A time is no house; a van is no name; a version is no machine.
    ["u:it went down at 14:07 today and the van Monday was late"],
    ["u:the Mercedes-Benz and the Rolls-Royce"],
    ["u:since version 10.4.x.x, 3 may is my birthday party"],
    # Abbreviations, relatives, thanks in other languages.
    ["a:Your SIM works, the IRS and the NHS were told. Your PUK is not needed."],
    ["u:my boss and my uncle say dziekuje"],
    ["a:your name, email and licence key", "u:reason is a late loan, key is lost"],
    # Amounts and years that follow a question for a number.
    ["a:account number and amount?", "u:89.99"],
    ["a:policy number and car please", "u:a silver wagon 2009"],
    ["u:boxes of 40 x 30 x 15, then 45 x 35 x 16"],
    # Forms, abbreviations that are spelled, letters that are words.
    ["u:is a 1099-NEC the same as SA302"],
    ["u:i sent it by a t m and got no i d back"],
    ["a:Is it a keypad meter or a bill meter?", "u:a keypad one"],
    # Places that are no homes, numbers of things.
    ["a:We are in unit 4 of the course.", "u:number 7 on the list is wrong"],
    ["u:i mistyped the postcode for L-87499"],
    ["a:When do you fly?", "u:May 2026, gate 14"],
    ["a:When is it due?", "u:12 June 2026"],
]


@pytest.mark.parametrize("turns", CLEAN, ids=[turns[-1] for turns in CLEAN])
def test_the_rest_stays(scrubber, turns):
    assert talk(scrubber, *turns) == [turn[2:] for turn in turns]
