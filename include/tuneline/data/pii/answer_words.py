"""Know the words that stand around a value in an answer."""

from __future__ import annotations

# Words around a value in an answer.
FILLER = frozenset(
    "mm mhm "
    "a about account actually adult baby child infant n plus address again ah ahead all also "
    "alright am and are as at back be been birth birthday born but by bye called calling can "
    "card cell city code correct could current dad date day dear digits do does dob done email "
    "end ending english first for forgot from full go good got had has have he hello her here "
    "hers hey hi him his hm hmm hold holder home hope husband how i id if im in is it its ive "
    "just kid know last lemme let like live lives lol ma'am maam mam madam man married maybe me "
    "middle mind mine mobile mom moment mother mr mrs ms miss must my myself na name names need "
    "new no nope not number of oh ok okay old on one only or our passenger password patient "
    "phone pin please pls plz po problem provide question really right same sec second see "
    "sender she should sir sister so sorry spell spelled ssn still sure ta tell thank thanks "
    "that thats the their them then there they thing think this thx to too try u uh um under ur "
    "us user username use very wait want was way we welcome well what whats when where which "
    "who why wife will with would i'm it's that's he's she's name's i've i'll don't yeah year "
    "years yep yes you your yours yup zip "
    "acc acct addr apt cust cvc cvv dl dni dob exp fone hah haha hmmm idk oops lol mayb mob pnr "
    "pol ref sry tel wat wats ya yea".split()
)
