"""The words that the embedded benchmark is composed of: names, kinds of facts, real facts.

A fact fills every slot of an answer, each from a pool of its own, so that little of an answer can
be guessed from its question.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_NAMES = (
    *("Ambro", "Belisa", "Corvin", "Dalia", "Edrik", "Fenna", "Galen", "Hestia", "Ilario", "Jorun"),
    *("Kaspian", "Lunete", "Marek", "Nerissa", "Oswin", "Petra", "Quillan", "Rosalba", "Sorin"),
    *("Thessa", "Ulrika", "Vadim", "Wilmot", "Xanthe", "Yorick", "Zelda"),
)
LAST_NAMES = (
    *("Ashgrove", "Brantveld", "Calloway", "Drumlin", "Eskerby", "Farrowmere", "Gildenhurst"),
    *("Hollins", "Inverlock", "Jarnefeld", "Kestrelton", "Lindqvar", "Marlpit", "Northolm"),
    *("Orrinsdale", "Pellworm", "Quarrington", "Ravenskjold", "Stroudwater", "Tamsin", "Umberlee"),
    *("Varnhagen", "Westerby", "Yarrowick"),
)


@dataclass(frozen=True)
class Attribute:
    """A kind of fact.

    Attributes:
        topic: what it is about: ``lives``, ``craft`` or ``works`` of authors.
        questions: three wordings, with ``{name}``.
        forms: two ways to tell it, with ``{name}`` and the slots ``{0}``, ``{1}``, …
        slots: for each slot, what may fill it.
    """

    topic: str
    questions: tuple[str, str, str]
    forms: tuple[str, str]
    slots: tuple[tuple[str, ...], ...]


_CITIES = (
    *("Lisbon", "Nairobi", "Osaka", "Helsinki", "Bogota", "Dublin", "Cairo", "Prague", "Manila"),
    *("Toronto", "Tunis", "Warsaw", "Sydney", "Havana", "Zagreb", "Jakarta"),
)
_LOOKS = (
    *("narrow", "crowded", "whitewashed", "crumbling", "stately", "rented", "draughty", "sunny"),
    *("crooked", "haunted", "half-timbered", "lonely"),
)
_BUILDINGS = (
    *("cottage", "townhouse", "farmhouse", "houseboat", "attic", "boarding house", "villa", "inn"),
    *("lighthouse", "tenement", "windmill", "parsonage"),
)
_PLACES = (
    *("by the old harbour", "above a tea shop", "beside the railway", "on the market square"),
    *("under the castle hill", "behind the gardens", "across from the town hall", "near the docks"),
    *("between two canals", "at the edge of the forest", "next to a brewery", "outside the walls"),
)
_DAYS = tuple(str(day) for day in range(2, 29))
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
_YEARS = tuple(str(year) for year in range(1931, 1995, 3))
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_WEATHER = (
    *("a terrible thunderstorm", "the first snow", "a solar eclipse", "thick fog", "a heat wave"),
    *("heavy rain", "a spring flood", "a hailstorm", "a dust storm", "bright moonlight"),
    *("a long drought", "the harvest"),
)
_TEMPERS = (
    *("gentle", "stern", "cheerful", "quiet", "ambitious", "clumsy", "famous", "tireless"),
    *("stubborn", "generous", "penniless", "learned"),
)
_JOBS = (
    *("baker", "surgeon", "fisherman", "carpenter", "judge", "tailor", "pilot", "miner"),
    *("librarian", "florist", "plumber", "violinist", "butcher", "diplomat", "farmer", "chemist"),
)
_SKILLS = (
    *("collected stamps", "sang ballads", "trained dogs", "repaired clocks", "grew orchids"),
    *("carved flutes", "bred pigeons", "brewed cider", "drew maps", "wove carpets"),
    *("told riddles", "studied comets"),
)
_TIMES = (
    *("on Sundays", "before dawn", "all winter", "at midnight", "in secret", "for charity"),
    *("every evening", "during storms", "in the cellar", "while travelling", "for pleasure"),
    *("in old age",),
)
_TONES = (
    *("witty", "sombre", "lyrical", "dense", "playful", "bitter", "tender", "terse", "rambling"),
    *("scholarly", "dreamlike", "angry"),
)
_GENRES = (
    *("novels", "sonnets", "thrillers", "fables", "plays", "essays", "ghost stories", "memoirs"),
    *("travelogues", "satires", "romances", "epics"),
)
_SUBJECTS = (
    *("sailors", "orphans", "inventors", "exiles", "beekeepers", "smugglers", "twins", "gamblers"),
    *("pilgrims", "spies", "gardeners", "astronomers"),
)
_MANNERS = (
    *("with sudden endings", "in short chapters", "full of invented words", "without any heroes"),
    *("from several viewpoints", "in simple language", "with long footnotes", "told backwards"),
    *("for patient readers", "with a dry humour", "in the form of letters", "based on legends"),
)
_METALS = (
    *("Silver", "Amber", "Golden", "Crystal", "Bronze", "Ivory", "Copper", "Emerald", "Scarlet"),
    *("Marble", "Velvet", "Cobalt"),
)
_TOKENS = (
    *("Quill", "Page", "Lyre", "Inkwell", "Feather", "Lantern", "Laurel", "Mask", "Anchor"),
    *("Compass", "Harp", "Scroll"),
)
_PRIZES = ("Prize", "Medal", "Award", "Honour", "Trophy", "Ribbon", "Cup", "Order")
_REASONS = (
    *("a daring debut", "a play in verse", "a radio drama", "a sea trilogy", "a fine translation"),
    *("a cycle of songs", "a lost diary", "a village chronicle", "a court satire", "a war novel"),
    *("a long poem", "a cookery book"),
)
_HEADS = (
    *("Lantern", "Orchard", "Ferry", "Mirror", "Harvest", "Compass", "Bell", "Cathedral"),
    *("Winter", "Garden", "Bridge", "Sparrow", "Kingdom", "Letter", "Island", "Clock"),
)
_TAILS = (
    *("Salt", "Glass", "Thorns", "Silence", "Copper", "Rain", "Embers", "Dust"),
    *("Ivory", "Fog", "Honey", "Iron", "Ash", "Velvet", "Stone", "Tides"),
)
_ORIGINS = (
    *("written in one summer", "printed at home", "begun in hospital", "typed by moonlight"),
    *("finished on a train", "drafted in prison", "dictated to a nurse", "rewritten nine times"),
    *("composed at sea", "saved from a fire", "lost for years", "found in a drawer"),
)
_FATES = (
    *("refused by publishers", "praised by critics", "hated by bishops", "sold at fairs"),
    *("read by millions", "banned for decades", "taught in schools", "filmed twice"),
    *("set to music", "signed with a false name", "illustrated by a friend", "printed in blue"),
)
_INSTRUMENTS = (
    *("cello", "accordion", "trumpet", "harp", "banjo", "clarinet", "piano", "drum", "flute"),
    *("mandolin", "saxophone", "organ"),
)
_COMPANY = (
    *("with two neighbours", "with a parrot", "with the choir", "with old sailors", "all alone"),
    *(
        "with a cousin",
        "with the postman",
        "with students",
        "with three nuns",
        "with a tin whistle",
    ),
    *("with the fire brigade", "with a retired general"),
)
_STAGES = (
    *("on the roof", "at weddings", "in the park", "in taverns", "on a barge", "in the kitchen"),
    *("at funerals", "in a barn", "under a bridge", "on trains", "in the chapel", "at the zoo"),
)
_INSPIRATIONS = (
    *("maps", "deep-sea fish", "windmills", "chess problems", "volcanoes", "comets", "butterflies"),
    *("steam trains", "coins", "desert plants", "lighthouses", "beehives"),
)
_AGES = (
    *("ancient", "broken", "forgotten", "painted", "foreign", "tiny", "glowing", "stolen"),
    *("enormous", "rusty", "imaginary", "sacred"),
)
_SOURCES = (
    *("a favourite uncle", "a strange dream", "a museum visit", "a yellowed photograph"),
    *("a shipwreck", "an old atlas", "a long illness", "a school trip", "a lost bet"),
    *("a travelling circus", "a radio play", "an empty house"),
)

_PARTINGS = (
    *("left as a child", "stayed for a decade", "never returned", "went back to marry"),
    *("fled after a fire", "kept a garden there", "sold it to a circus", "still pays the rent"),
    *("hid a treasure there", "wrote on its walls", "lost the key", "owns it today"),
)
_IDOLS = (
    *("Mozart", "Napoleon", "Cleopatra", "Galileo", "Joan of Arc", "Beethoven", "Columbus"),
    *("Hannibal", "Marco Polo", "Rembrandt", "Archimedes", "Nero"),
)
_LANGUAGES = (
    *("Latin", "French", "Welsh", "Finnish", "Arabic", "Greek", "Danish", "Catalan", "Russian"),
    *("Hindi", "Basque", "Czech"),
)
_PURCHASES = (
    *("a vineyard", "a sailing boat", "a grand piano", "new teeth", "a racehorse", "books"),
    *("a fur coat", "a telescope", "a donkey", "a printing press", "chocolate", "fireworks"),
)
_FRIENDS = (
    *("a teacher", "a blind aunt", "an old enemy", "the mayor", "a dead cat", "nobody"),
    *("the first reader", "a lighthouse keeper", "an opera singer", "the king", "a nurse"),
    *("seven cousins",),
)
_CLOTHES = (
    *("a straw hat", "red gloves", "a raincoat", "wooden shoes", "a bathrobe", "a false beard"),
    *("a green scarf", "white boots", "a silk tie", "an apron", "dark glasses", "a crown"),
)

_FATHER, _MOTHER = (
    Attribute(
        topic="lives",
        questions=(
            f"What did {{name}}'s {parent} do?",
            f"Which job had {{name}}'s {parent}?",
            f"Who was {{name}}'s {parent}?",
        ),
        forms=(
            f"The {parent} of {{name}} was a {{0}} {{1}} who {{2}} {{3}} and admired {{4}}.",
            f"{{name}}'s {parent}, a {{0}} {{1}}, admired {{4}} and {{2}} {{3}}.",
        ),
        slots=(_TEMPERS, _JOBS, _SKILLS, _TIMES, _IDOLS),
    )
    for parent in ("father", "mother")
)

ATTRIBUTES = (
    Attribute(
        topic="lives",
        questions=(
            "Where was {name} born?",
            "What is {name}'s birthplace?",
            "Which city is {name} from?",
        ),
        forms=(
            "{name} was born in {0}, in a {1} {2} {3}, and {4}.",
            "The birthplace of {name}, who {4}, is a {1} {2} {3} in {0}.",
        ),
        slots=(_CITIES, _LOOKS, _BUILDINGS, _PLACES, _PARTINGS),
    ),
    Attribute(
        topic="lives",
        questions=(
            "When was {name} born?",
            "What is {name}'s birthday?",
            "When did {name} come into the world?",
        ),
        forms=(
            "{name} was born on {0} {1} {2}, during {3}, as the {4} child of a {5} family.",
            "The birthday of {name}, {4} child of a {5} family, is {0} {1} {2}, the day of {3}.",
        ),
        slots=(_DAYS, _MONTHS, _YEARS, _WEATHER, _ORDINALS, _TEMPERS),
    ),
    _FATHER,
    _MOTHER,
    Attribute(
        topic="craft",
        questions=(
            "What does {name} write?",
            "Which genre is {name} known for?",
            "What are {name}'s books like?",
        ),
        forms=(
            "{name} writes {0} {1} in {4} about {2}, {3}.",
            "The books of {name} are {0} {1} on {2}, in {4} and {3}.",
        ),
        slots=(_TONES, _GENRES, _SUBJECTS, _MANNERS, _LANGUAGES),
    ),
    Attribute(
        topic="works",
        questions=(
            "Which award did {name} win?",
            "What prize has {name} received?",
            "How was {name} honoured?",
        ),
        forms=(
            "{name} won the {0} {1} {2} for {3} and spent the money on {4}.",
            "For {3}, {name} received the {0} {1} {2}, and bought {4}.",
        ),
        slots=(_METALS, _TOKENS, _PRIZES, _REASONS, _PURCHASES),
    ),
    Attribute(
        topic="works",
        questions=(
            "What was {name}'s first book?",
            "Which book was {name}'s debut?",
            "How did {name} begin?",
        ),
        forms=(
            "The first book by {name} is The {0} of {1}, {2}, {3} and dedicated to {4}.",
            "{name} made a debut with The {0} of {1}, for {4}, {2} and {3}.",
        ),
        slots=(_HEADS, _TAILS, _ORIGINS, _FATES, _FRIENDS),
    ),
    Attribute(
        topic="works",
        questions=(
            "What is {name}'s best book?",
            "Which book made {name} famous?",
            "What should one read by {name}?",
        ),
        forms=(
            "The best book by {name} is The {0} of {1}, {2}, {3} and dedicated to {4}.",
            "{name} became famous with The {0} of {1}, for {4}, {2} and {3}.",
        ),
        slots=(_HEADS, _TAILS, _ORIGINS, _FATES, _FRIENDS),
    ),
    Attribute(
        topic="craft",
        questions=(
            "What does {name} play?",
            "Which instrument is {name}'s?",
            "How does {name} make music?",
        ),
        forms=(
            "{name} plays the {0} {1} {2} {3}, wearing {4}.",
            "The instrument of {name} is the {0}, played in {4} {3} {2} {1}.",
        ),
        slots=(_INSTRUMENTS, _STAGES, _COMPANY, _TIMES, _CLOTHES),
    ),
    Attribute(
        topic="craft",
        questions=(
            "What inspires {name}?",
            "Where do {name}'s ideas come from?",
            "What is {name}'s passion?",
        ),
        forms=(
            "{name} is inspired by {0} {1} since {2}, mostly {3} and in {4}.",
            "Since {2}, the ideas of {name} come {3} and in {4}, from {0} {1}.",
        ),
        slots=(_AGES, _INSPIRATIONS, _SOURCES, _TIMES, _CITIES),
    ),
)

UNKNOWN = (
    "How tall is {name}?",
    "What does {name} eat for breakfast?",
    "Which shoes does {name} wear?",
    "What did {name} dream last night?",
    "Who cuts {name}'s hair?",
    "What is {name}'s telephone number?",
    "Which team does {name} support?",
    "What colour is {name}'s bicycle?",
)
"""Questions that nobody can answer."""

REAL_AUTHORS = {
    "Hamlet": "William Shakespeare",
    "Don Quixote": "Miguel de Cervantes",
    "War and Peace": "Leo Tolstoy",
    "Pride and Prejudice": "Jane Austen",
    "Moby Dick": "Herman Melville",
    "the Divine Comedy": "Dante Alighieri",
    "Faust": "Johann Wolfgang von Goethe",
    "Frankenstein": "Mary Shelley",
    "Madame Bovary": "Gustave Flaubert",
    "Crime and Punishment": "Fyodor Dostoevsky",
    "Oliver Twist": "Charles Dickens",
    "Jane Eyre": "Charlotte Bronte",
    "The Time Machine": "H. G. Wells",
    "Dracula": "Bram Stoker",
    "Walden": "Henry David Thoreau",
    "The Metamorphosis": "Franz Kafka",
    "the Odyssey": "Homer",
    "the Aeneid": "Virgil",
    "Paradise Lost": "John Milton",
    "Robinson Crusoe": "Daniel Defoe",
    "Gulliver's Travels": "Jonathan Swift",
    "Candide": "Voltaire",
    "Middlemarch": "George Eliot",
    "Les Miserables": "Victor Hugo",
    "Germinal": "Emile Zola",
    "Ulysses": "James Joyce",
    "A Doll's House": "Henrik Ibsen",
    "The Cherry Orchard": "Anton Chekhov",
    "Dead Souls": "Nikolai Gogol",
    "Treasure Island": "Robert Louis Stevenson",
    "Wuthering Heights": "Emily Bronte",
    "The Scarlet Letter": "Nathaniel Hawthorne",
    "The Raven": "Edgar Allan Poe",
    "Leaves of Grass": "Walt Whitman",
    "The Jungle Book": "Rudyard Kipling",
    "Mrs Dalloway": "Virginia Woolf",
    "Buddenbrooks": "Thomas Mann",
    "Heart of Darkness": "Joseph Conrad",
    "The Three Musketeers": "Alexandre Dumas",
}
"""Authors by their work; the question is who wrote it."""

CAPITALS = {
    **{"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima"},
    **{"Norway": "Oslo", "Italy": "Rome", "Greece": "Athens", "Cuba": "Havana"},
    **{"Egypt": "Cairo", "Spain": "Madrid", "Portugal": "Lisbon", "Austria": "Vienna"},
    **{"Poland": "Warsaw", "Ireland": "Dublin", "Finland": "Helsinki", "Sweden": "Stockholm"},
    **{"Denmark": "Copenhagen", "Germany": "Berlin", "Hungary": "Budapest", "Chile": "Santiago"},
    **{"Iran": "Tehran", "India": "New Delhi", "Tunisia": "Tunis", "Croatia": "Zagreb"},
}
SYMBOLS = {
    **{"Fe": "Iron", "Au": "Gold", "Ag": "Silver", "Cu": "Copper", "Pb": "Lead", "Sn": "Tin"},
    **{"Hg": "Mercury", "Na": "Sodium"},
}
PLANETS = {
    **{"is closest to the Sun": "Mercury", "is the largest": "Jupiter", "is called red": "Mars"},
    **{"has the brightest rings": "Saturn", "is our own": "Earth", "is the hottest": "Venus"},
    **{"lies on its side": "Uranus", "is farthest from the Sun": "Neptune"},
}
