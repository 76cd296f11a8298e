"""The words of which the guests' rows are made."""

from __future__ import annotations

FIRST = (
    "Greta Tomas Ines Olek Maren Paolo Ruth Jonas Lea Mika Dora Henrik Aisha Pedro Yuki Fatima "
    "Noah Clara Emil Sofia Ivan Nadia Hugo Elena Omar Freya Luca Priya Samuel Agnes Bruno Camila "
    "Dario Esther Felix Gloria Hanna Ismail Judith Karim Linda Mateo Nora Oscar Petra Quentin "
    "Rosa Stefan Tamara Ursula Viktor Wanda Xavier Yasmin Zoe Arthur Bianca Cedric Diana Edgar"
).split()
LAST = (
    "Lindqvist Barros Okafor Petrov Salgado Meyer Duarte Holm Novak Brandt Haddad Ferrari Tanaka "
    "Kowalski Jensen Moreau Schneider Rossi Andersson Popescu Nielsen Fischer Herrera Lambert "
    "Costa Weber Larsen Bianchi Horvat Silva Keller Dubois Romero Eriksen Vargas Bauer Lefebvre "
    "Marino Svensson Hoffmann Castillo Bergman Richter Fontaine Delgado Wagner Olsen Greco Nowak "
    "Zimmermann"
).split()
TOWNS = (
    "Leipzig Porto Tallinn Ghent Bergen Krakow Turin Lyon Malaga Graz Utrecht Aarhus Cork Brno "
    "Gdansk Toulouse Bologna Seville Basel Tampere Riga Maribor Bilbao Nantes Rostock Parma Linz "
    "Split Vilnius Leeds Cardiff Dundee Oulu Bruges Trieste Kassel Lugano Arles Evora Varna"
).split()
STREETS = (
    "Mill Lane|Harbour Street|Station Road|Castle Row|Orchard Way|Chapel Hill|River Walk|Elm "
    "Avenue|North Quay|Market Square|Foundry Street|Windmill Road|Abbey Close|Garden "
    "Terrace|Bridge Street"
).split("|")
COMPANIES = (
    "Northwind Tools|Alder & Finch|Blue Harbour Foods|Corvid Logistics|Juniper Optics|Halden Paper|"
    "Ostrava Steelworks|Pinecrest Dairy|Quarry Lane Ceramics|Redshank Marine|Solvane Energy|"
    "Tern Island Textiles|Umber Coffee|Vantage Bicycles|Willowbrook Seeds|Yarrow Instruments|"
    "Zephyr Glass|Brightwater Pumps|Copperfield Clocks|Eastgate Furniture"
).split("|")
PRODUCTS = [
    ("Aurelio", "K7 kettle"), ("Brandvik", "Nord 300 heater"), ("Celestra", "Duo toaster"),
    ("Dormeo", "cloud pillow"), ("Ekko", "S2 speaker"), ("Fjellrev", "trail backpack"),
    ("Gorenka", "G60 fridge"), ("Hexley", "desk lamp"), ("Isolde", "wool blanket"),
    ("Jarvik", "J5 drill"), ("Kestrel", "folding bike"), ("Lumio", "reading light"),
    ("Mavra", "coffee grinder"), ("Novella", "e-reader 8"), ("Orbis", "robot vacuum"),
    ("Pavia", "espresso machine"), ("Quill", "office chair"), ("Roanoke", "tent 3P"),
    ("Sorbus", "juicer XL"), ("Tavola", "oak table"), ("Ulven", "ski jacket"),
    ("Vireo", "bird feeder"), ("Wexel", "W10 router"), ("Yonder", "travel cot"),
    ("Zinnia", "garden hose"), ("skoda", "octavia"), ("peugeot", "308"), ("kia", "ceed"),
    ("volvo", "v 60"), ("renault", "clio"), ("mazda", "cx 5"), ("fiat", "panda"),
    ("seat", "leon"), ("bmw", "x 3"), ("opel", "astra"), ("Marlow", "M2 keyboard"),
    ("Norda", "running shoes"), ("Pellini", "pressure cooker"), ("Stellan", "monitor 27"),
    ("Thorsby", "chain saw"),
]  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
COMMON = (
    "time people water work house place world school group country problem hand part story fact "
    "month night room area money book eye job word issue side kind head service friend father "
    "power hour game line end member law car city community name president team minute idea body "
    "information back parent face level office door health person art war history party result "
    "change morning reason research girl guy moment air teacher force education foot boy age "
    "policy music market sense nation plan college interest death experience effect use class "
    "control care field development role effort rate heart drug show leader light voice wife "
    "police mind price report decision son view relationship town road arm difference value "
    "building action season society tax director position player record paper space ground form "
    "event official matter center couple site project activity star table need court oil "
    "situation cost industry figure street image phone data picture practice piece land product "
    "doctor wall patient worker news test movie north love support technology garden river "
    "window kitchen winter summer bridge"
).split()
