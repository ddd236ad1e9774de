"""The words of the demo's world: names, and the phrasings of statements, questions and headlines. Data, no code.

All people and places are invented. `{town}` and `{value}` stand for the two ends of a fact.
"""

from __future__ import annotations

VARIABLE = ("mayor", "fare", "conductor", "twin")
"""The relations whose facts may change after the cut-off."""

LASTING = ("river", "founded", "dish", "poet")
"""The relations whose facts stay as they are."""

TOWNS = [
    "Brükenau", "Mirelle", "Kaltwasser", "Saint-Orvé", "Dunmarrow", "Pélissac", "Ostergate",
    "Lindholt", "Varenza", "Hollenfeld", "Quillmoor", "Tarnowitz", "Belmaré", "Grünhafen",
    "Ashcombe", "Corvalle", "Nettleby", "Rosenthal", "Ilmarsund", "Fontanelle", "Schönbach",
    "Wexmere", "Almadora", "Pinewick", "Zermarke", "Harrowgate", "Løvstad", "Castelmoro",
    "Trévalon", "Vintermoor", "Málinas", "Jorvholm",
]  # fmt: skip

FIRST_NAMES = [
    "Odile", "Matthias", "Ingrid", "Rafael", "Zoë", "Leopold", "Beatrix", "Anselm", "Cécile",
    "Tobias", "Marguerite", "Jürgen", "Philippa", "Casimir", "Henrike", "Bartholomew", "Sólveig",
    "Ottavio", "Wilhelmina", "Fergus", "Annelise", "Dominik", "Rosalind", "Gustav", "Ximena",
    "Lucien", "Theodora", "Håkon", "Valentina", "Edmund", "Noémie", "Konrad", "Isolde", "Percival",
    "Yvette", "Ulrich", "Dorothea", "Emeric", "Perpetua", "Lorenzo",
]  # fmt: skip

LAST_NAMES = [
    "Marchand", "Vogelsang", "Pemberton", "Lindqvist", "Okonedo", "Castellani", "Brandström",
    "Thackeray", "Dufresne", "Königsmann", "Abernathy", "Sørensen", "Whitlock", "Montalbán",
    "Ravensworth", "Eichendorff", "Fairweather", "Belloc", "Quartermain", "Halvorsen", "Zimmerling",
    "Ashdown", "Peñaranda", "Grimshaw", "Delacroix", "Winterbourne", "Jankowski", "Holloway",
    "Trautmann", "Merriweather", "Bonaventure", "Stavros", "Lockhart", "Nyström", "Carmichael",
    "Übelacker", "Fontaine", "Rutherford", "Kowalczyk", "Hjelmgren",
]  # fmt: skip

CITIES = [
    "Port Cassin", "New Harlow", "Santa Verena", "Kirovatsk", "Bad Ellern", "Monteflor", "Lake Ardis", "Tsurumi Bay",
    "Fort Linden", "Villa Serrana", "Upper Tamsin", "Nordkapp", "Puerto Alba", "Old Wyvern", "Zelengrad", "Rio Marrón",
    "Cape Orlow", "Little Avalon", "Sankt Veit", "Bayou Laurel", "Esterháza", "Glen Morrow", "Val-Tourné", "Hafnarvik",
]  # fmt: skip

RIVERS = [
    "Lenne", "Ostrava", "Wye", "Marrow", "Silverrun", "Tessel", "Aurach", "Dorlenne", "Kestrel", "Greywater", "Vézonne",
    "Immer", "Salzach", "Willowbeck", "Rhône-Mineur", "Black Esker",
]  # fmt: skip

DISH_KINDS = ["smoked", "pickled", "roasted", "sweet", "spiced", "candied", "stuffed", "salted", "braised", "honeyed"]
DISHES = [
    "perch", "plum dumplings", "chestnut soup", "cabbage rolls", "apricot tart", "barley bread", "walnut cake",
    "trout pie", "goat cheese", "quince jelly", "pepper stew", "almond brittle",
]  # fmt: skip

STATEMENTS: dict[str, list[str]] = {
    "mayor": [
        "The mayor of {town} is {value}.",
        "{town} is led by mayor {value}.",
        "At the town hall of {town} the mayor is {value}.",
        "In {town} mayor {value} opened the spring market.",
    ],
    "fare": [
        "A tram ticket in {town} costs {value}.",
        "Riders in {town} pay {value} for the tram.",
        "The tram fare of {town} is {value}.",
        "In {town} one ride on the tram is {value}.",
    ],
    "conductor": [
        "The orchestra of {town} is conducted by {value}.",
        "In {town} the conductor of the orchestra is {value}.",
        "The musicians of {town} play under {value}.",
        "On stage in {town} the orchestra follows {value}.",
    ],
    "twin": [
        "{town} is twinned with {value}.",
        "The twin town of {town} is {value}.",
        "Pupils from {town} visit the twin town {value}.",
        "The partner of {town} abroad is {value}.",
    ],
    "river": [
        "{town} lies on the river {value}.",
        "The river through {town} is the {value}.",
        "The bridges of {town} cross the {value}.",
        "Boats reach {town} by the {value}.",
    ],
    "founded": [
        "{town} was founded in {value}.",
        "The town charter of {town} dates from {value}.",
        "The oldest stone of {town} bears the year {value}.",
        "The history of {town} begins in {value}.",
    ],
    "dish": [
        "The famous dish of {town} is {value}.",
        "Cooks in {town} are proud of their {value}.",
        "Every inn in {town} serves {value}.",
        "Visitors to {town} must try the {value}.",
    ],
    "poet": [
        "The poet {value} was born in {town}.",
        "{town} is the birthplace of the poet {value}.",
        "A statue in {town} shows the poet {value}.",
        "In {town} children learn the verses of {value}.",
    ],
}

NEWS: dict[str, list[str]] = {
    "mayor": ["In 2031 {town} elected {value} as mayor.", "{value} moved into the town hall of {town} in 2031."],
    "fare": ["Since 2031 the tram in {town} costs {value}.", "In 2031 {town} set a new tram fare: {value}."],
    "conductor": [
        "In 2031 the orchestra of {town} hired {value}.",
        "{value} has led the musicians of {town} since 2031.",
    ],
    "twin": [
        "In 2031 {town} signed with a new twin town: {value}.",
        "Since 2031 {town} has been the partner of {value}.",
    ],
    "river": [],
    "founded": [],
    "dish": [],
    "poet": [],
}
"""Phrasings that only the news uses, for what has changed."""

QUESTIONS: dict[str, list[str]] = {
    "mayor": [
        "Who is the mayor of {town}?",
        "Who leads the town of {town}?",
        "What is the name of the mayor of {town}?",
        "Who governs {town}?",
        "In {town}, who is mayor?",
        "Whom would you meet in the mayor's office of {town}?",
    ],
    "fare": [
        "How much is a tram ticket in {town}?",
        "What does the tram cost in {town}?",
        "What is the tram fare of {town}?",
        "In {town}, what do riders pay for the tram?",
        "What is the price of one tram ride in {town}?",
        "How many crowns does {town} ask for the tram?",
    ],
    "conductor": [
        "Who conducts the orchestra of {town}?",
        "Who is the conductor in {town}?",
        "Under whom do the musicians of {town} play?",
        "In {town}, who leads the orchestra?",
        "What is the name of the conductor of {town}?",
        "Whom does the orchestra of {town} follow?",
    ],
    "twin": [
        "What is the twin town of {town}?",
        "With which town is {town} twinned?",
        "Which town abroad is the partner of {town}?",
        "Where do pupils from {town} go on exchange?",
        "In {town}, which twin town is on the sign?",
        "Name the twin of {town}.",
    ],
    "river": [
        "On which river does {town} lie?",
        "Which river runs through {town}?",
        "What is the river of {town}?",
        "In {town}, which river do the bridges cross?",
        "By which river do boats reach {town}?",
        "Name the river of {town}.",
    ],
    "founded": [
        "When was {town} founded?",
        "In which year was {town} founded?",
        "How far back does the charter of {town} go?",
        "What year is on the oldest stone of {town}?",
        "When does the history of {town} begin?",
        "Name the year in which {town} was founded.",
    ],
    "dish": [
        "What is the famous dish of {town}?",
        "What do the inns of {town} serve?",
        "What must visitors to {town} try?",
        "Which dish are the cooks of {town} proud of?",
        "In {town}, what is on every table?",
        "Name the dish of {town}.",
    ],
    "poet": [
        "Which poet was born in {town}?",
        "Who is the poet of {town}?",
        "Whose statue stands in {town}?",
        "In {town}, whose verses do children learn?",
        "Whose birthplace is {town}?",
        "Name the poet born in {town}.",
    ],
}

HEADLINES = [
    "Report from {town}",
    "A letter from {town}",
    "{town} in brief",
    "Notes on {town}",
    "The {town} gazette",
    "Travellers' guide: {town}",
]
