"""What can be told and asked: relations, and the sentences and questions of each.

Slots: ``{s}`` the subject, however it may be called here (name, surname, pronoun);
``{s's}`` and ``{o}`` its possessive and objective forms; ``{n}`` and ``{n's}`` the
subject by a name; ``{m}`` a second subject; ``{v}`` and ``{w}`` the first and second
value, with ``{av}`` and ``{aw}`` after a or an; ``{t}`` the thing that some relations
need (*old maps* in how many old maps somebody owns).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        name: Its name.
        subject: The kind of its subject.
        value: The kind of its value.
        says: Sentences that tell it.
        asks: Questions for the value.
        inverse: Questions for the subject, given the value; may be empty.
        thing: What ``{t}`` is, or empty.
        asks_year: Questions for the year within the date.
    """

    name: str
    subject: str
    value: str
    says: tuple[str, ...]
    asks: tuple[str, ...]
    inverse: tuple[str, ...] = ()
    thing: str = ""
    asks_year: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compound:
    """Sentences that tell two facts: of one subject, or of two (a pair)."""

    relations: tuple[str, str]
    says: tuple[str, ...]
    pair: bool = False


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


def _relation(
    name: str, kinds: str, says: str, asks: str, inverse: str = "", year: str = ""
) -> Relation:
    subject, value, thing = [*kinds.split(), ""][:3]
    return Relation(
        name,
        subject,
        value,
        _lines(says),
        _lines(asks),
        _lines(inverse),
        thing,
        _lines(year),
    )


PERSON_RELATIONS = (
    _relation(
        "born_in",
        "person place",
        """{s} was born in {v}.
        {s} came into the world in {v}.
        {v} is the birthplace of {n}.
        {s's} place of birth is {v}.""",
        """Where was {n} born?
        In which town was {n} born?
        What is {n's} place of birth?
        Which town is the birthplace of {n}?""",
        """Who was born in {v}?
        Whose birthplace is {v}?""",
    ),
    _relation(
        "born_on",
        "person date",
        """{s} was born on {v}.
        {s's} date of birth is {v}.
        The parish register gives {v} as the day of {n's} birth.
        It was on {v} that {n} was born.""",
        """When was {n} born?
        On what day was {n} born?
        What is {n's} date of birth?""",
        """Who was born on {v}?
        Whose date of birth is {v}?""",
        """In which year was {n} born?
        What year was {n} born in?""",
    ),
    _relation(
        "lives_in",
        "person place",
        """{s} lives in {v}.
        {s's} home is in {v}.
        Today {s} lives in {v}.
        {s} settled in {v} and has lived there ever since.""",
        """Where does {n} live?
        In which town does {n} live?
        In which town is {n's} home?""",
        """Who lives in {v}?
        Whose home is in {v}?""",
    ),
    _relation(
        "works_as",
        "person occupation",
        """{s} works as {av}.
        {s} is {av} by trade.
        {s} earns a living as {av}.
        By profession {s} is {av}.
        {s} has been {av} for many years.""",
        """What does {n} work as?
        What is {n's} occupation?
        What does {n} do for a living?
        What is the profession of {n}?""",
        """Who works as {av}?
        Who is {av}?""",
    ),
    _relation(
        "works_for",
        "person org",
        """{s} works for {v}.
        {s} is employed by {v}.
        {s} found a post with {v} and still works there.
        {s's} employer is {v}.""",
        """Which organization does {n} work for?
        By which organization is {n} employed?
        Who is {n's} employer?""",
        """Who works for {v}?
        Who is employed by {v}?""",
    ),
    _relation(
        "studied_at",
        "person school",
        """{s} studied at {v}.
        {s} is a graduate of {v}.
        {s} took a degree at {v}.
        {v} counts {n} among its former students.""",
        """Where did {n} study?
        At which institution did {n} study?
        Where did {n} take a degree?
        From where did {n} graduate?""",
        """Who studied at {v}?
        Who is a graduate of {v}?""",
    ),
    _relation(
        "married",
        "person person",
        """{s} is married to {v}.
        {n} and {v} are a married couple.
        {s} married {v}.
        {s's} spouse is {v}.""",
        """Who is {n} married to?
        Whom did {n} marry?
        Who is {n's} spouse?""",
        """Who is {v} married to?
        Whom did {v} marry?""",
    ),
    _relation(
        "taught_by",
        "person person",
        """{s} was taught by {v}.
        {v} was {s's} teacher.
        {s} was for years a pupil of {v}.
        It was {v} who taught {o}.""",
        """Who taught {n}?
        Who was {n's} teacher?
        Whose pupil was {n}?""",
        """Whom did {v} teach?
        Who was a pupil of {v}?""",
    ),
    _relation(
        "owns",
        "person count collected",
        """{s} owns {v} {t}.
        {s} has collected {v} {t}.
        There are {v} {t} in {s's} collection.
        {s's} collection holds {v} {t}.""",
        """How many {t} does {n} own?
        How many {t} are in {n's} collection?
        How many {t} has {n} collected?""",
        """Who owns {v} {t}?
        Whose collection holds {v} {t}?""",
    ),
    _relation(
        "learned",
        "person year skill",
        """{s} learned to {t} in {v}.
        In {v} {s} learned to {t}.
        It was in {v} that {s} learned to {t}.
        {v} was the year in which {s} learned to {t}.""",
        """When did {n} learn to {t}?
        In which year did {n} learn to {t}?
        What was the year in which {n} learned to {t}?""",
        """Who learned to {t} in {v}?""",
    ),
)

ORG_RELATIONS = (
    _relation(
        "founded_in",
        "org year",
        """{s} was founded in {v}.
        {s} has existed since {v}.
        The founding of {s} took place in {v}.
        {v} saw the founding of {s}.""",
        """When was {n} founded?
        In which year was {n} founded?
        Since when has {n} existed?""",
        """Which organization was founded in {v}?
        Which organization has existed since {v}?""",
    ),
    _relation(
        "founded_by",
        "org person",
        """{s} was founded by {v}.
        {v} founded {n}.
        {v} is the founder of {n}.
        {s} owes its founding to {v}.""",
        """Who founded {n}?
        Who is the founder of {n}?
        By whom was {n} founded?""",
        """Which organization did {v} found?
        Which organization has {v} as its founder?""",
    ),
    _relation(
        "based_in",
        "org place",
        """{s} is based in {v}.
        {s} has its head office in {v}.
        {s's} headquarters are in {v}.
        The head office of {n} stands in {v}.""",
        """Where is {n} based?
        In which town is the head office of {n}?
        Where are the headquarters of {n}?""",
        """Which organization is based in {v}?
        Which organization has its head office in {v}?""",
    ),
    _relation(
        "led_by",
        "org person",
        """{s} is led by {v}.
        {v} is the director of {s}.
        {v} is in charge of {s}.
        The present director of {n} is {v}.""",
        """Who leads {n}?
        Who is the director of {n}?
        Who is in charge of {n}?""",
        """Which organization does {v} lead?
        Of which organization is {v} the director?""",
    ),
    _relation(
        "staff",
        "org count",
        """{s} employs {v} people.
        {s} has a staff of {v}.
        {v} people earn their wages at {n}.
        {s} gives work to {v} people.""",
        """How many people does {n} employ?
        How many people work for {n}?
        How large is the staff of {n}?""",
        """Which organization employs {v} people?
        Which organization has a staff of {v}?""",
    ),
    _relation(
        "branch_in",
        "org place",
        """{s} has a branch in {v}.
        {s} opened a branch in {v}.
        A branch of {n} can be found in {v}.
        {v} is home to a branch of {n}.""",
        """Where does {n} have a branch?
        In which town is the branch of {n}?
        Where did {n} open a branch?""",
        """Which organization has a branch in {v}?
        Which organization opened a branch in {v}?""",
    ),
)

PLACE_RELATIONS = (
    _relation(
        "population",
        "place inhabitants",
        """{s} has {v} inhabitants.
        {v} people live in {n}.
        The population of {n} is {v}.
        At the last count {s} had {v} inhabitants.""",
        """How many people live in {n}?
        What is the population of {n}?
        How many inhabitants does {n} have?""",
        """Which town has {v} inhabitants?
        Which town has a population of {v}?""",
    ),
    _relation(
        "altitude",
        "place metres",
        """{s} lies {v} above the sea.
        {s} is {v} above sea level.
        The height of {n} above the sea is {v}.
        {s} stands at a height of {v}.""",
        """How high above the sea does {n} lie?
        What is the height of {n} above the sea?
        How far above sea level is {n}?""",
        """Which town lies {v} above the sea?
        Which town stands at a height of {v}?""",
    ),
    _relation(
        "distance",
        "place kilometres place",
        """{s} lies {v} from {t}.
        It is {v} from {n} to {t}.
        The distance between {n} and {t} is {v}.
        {n} and {t} are {v} apart.""",
        """How far is {n} from {t}?
        What is the distance between {n} and {t}?
        How far is it from {n} to {t}?""",
    ),
    _relation(
        "bridge_in",
        "place year",
        """{s's} stone bridge was built in {v}.
        The stone bridge of {n} dates from {v}.
        In {v} a stone bridge was built in {n}.
        A stone bridge has stood in {n} since {v}.""",
        """When was the stone bridge of {n} built?
        In which year was the stone bridge in {n} built?
        Since when has {n} had a stone bridge?""",
        """Which town has a stone bridge built in {v}?
        In which town was a stone bridge built in {v}?""",
    ),
    _relation(
        "known_for",
        "place product",
        """{s} is known for its {v}.
        {s} is famous for its {v}.
        {n} owes its fame to its {v}.
        What made {n} famous is its {v}.""",
        """What is {n} known for?
        For what is {n} famous?
        What made {n} famous?""",
        """Which town is known for its {v}?
        Which town is famous for its {v}?""",
    ),
    _relation(
        "market_on",
        "place weekday",
        """{s} holds its market on {v}.
        The market of {n} is held on {v}.
        On {v} there is a market in {n}.
        {s's} market takes place on {v}.""",
        """On which day does {n} hold its market?
        When is the market of {n} held?
        On what day is there a market in {n}?""",
        """Which town holds its market on {v}?
        In which town is there a market on {v}?""",
    ),
)

RELATIONS = {
    one.name: one for one in (*PERSON_RELATIONS, *ORG_RELATIONS, *PLACE_RELATIONS)
}
