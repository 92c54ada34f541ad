"""Sentences that tell two facts at once, and sentences that tell none."""

from __future__ import annotations

from loralab.data.own.relations import Compound

PAIRS = (
    Compound(
        ("born_in", "born_in"),
        (
            "{n} was born in {v}, {m} in {w}.",
            "{n} and {m} were born in {v} and {w} respectively.",
            "While {n} was born in {v}, the birthplace of {m} is {w}.",
        ),
        pair=True,
    ),
    Compound(
        ("lives_in", "lives_in"),
        (
            "{n} lives in {v}, whereas {m} lives in {w}.",
            "{n} lives in {v} and {m} in {w}.",
            "The home of {n} is in {v}, that of {m} in {w}.",
        ),
        pair=True,
    ),
    Compound(
        ("works_as", "works_as"),
        (
            "{n} works as {av}, whereas {m} is {aw}.",
            "{n} is {av} and {m} {aw}.",
            "Unlike {n}, who is {av}, {m} earns a living as {aw}.",
        ),
        pair=True,
    ),
    Compound(
        ("works_for", "works_for"),
        (
            "{n} works for {v}, {m} for {w}.",
            "{n} and {m} are employed by {v} and {w} respectively.",
        ),
        pair=True,
    ),
    Compound(
        ("studied_at", "studied_at"),
        (
            "{n} studied at {v}, but {m} went to {w} to study.",
            "Unlike {n}, who studied at {v}, {m} took a degree at {w}.",
        ),
        pair=True,
    ),
    Compound(
        ("born_on", "born_on"),
        (
            "{n} was born on {v}, {m} on {w}.",
            "The birth of {n} fell on {v}, that of {m} on {w}.",
        ),
        pair=True,
    ),
    Compound(
        ("founded_in", "founded_in"),
        (
            "{n} was founded in {v}, {m} in {w}.",
            "{n} has existed since {v} and {m} since {w}.",
        ),
        pair=True,
    ),
    Compound(
        ("based_in", "based_in"),
        (
            "{n} is based in {v}, but {m} is based in {w}.",
            "{n} and {m} have their head offices in {v} and {w} respectively.",
        ),
        pair=True,
    ),
    Compound(
        ("staff", "staff"),
        (
            "{n} employs {v} people and {m} {w}.",
            "With a staff of {v}, {n} differs in size from {m}, which employs {w} "
            "people.",
        ),
        pair=True,
    ),
    Compound(
        ("population", "population"),
        (
            "{n} has {v} inhabitants, {m} has {w}.",
            "{v} people live in {n}, and {w} in {m}.",
        ),
        pair=True,
    ),
    Compound(
        ("altitude", "altitude"),
        (
            "{n} lies {v} above the sea and {m} {w}.",
            "While {n} stands at a height of {v}, {m} lies {w} above the sea.",
        ),
        pair=True,
    ),
    Compound(
        ("bridge_in", "bridge_in"),
        (
            "The stone bridge of {n} dates from {v}, that of {m} from {w}.",
            "A stone bridge was built in {n} in {v} and another in {m} in {w}.",
        ),
        pair=True,
    ),
    Compound(
        ("market_on", "market_on"),
        (
            "{n} holds its market on {v}, {m} on {w}.",
            "There is a market on {v} in {n} and on {w} in {m}.",
        ),
        pair=True,
    ),
    Compound(
        ("known_for", "known_for"),
        ("{n} is known for its {v} and {m} for its {w}.",),
        pair=True,
    ),
)

JOINTS = (
    Compound(
        ("born_in", "born_on"),
        (
            "{s} was born in {v} on {w}.",
            "{n} was born in {v}; the date was {w}.",
        ),
    ),
    Compound(
        ("born_in", "lives_in"),
        (
            "{n}, who was born in {v}, lives in {w}.",
            "{s} was born in {v} but lives in {w}.",
            "{n}, a native of {v}, lives in {w}.",
        ),
    ),
    Compound(
        ("works_as", "lives_in"),
        (
            "{n}, {av} by trade, lives in {w}.",
            "{s} lives in {w} and works as {av}.",
        ),
    ),
    Compound(
        ("works_as", "works_for"),
        (
            "{s} works as {av} for {w}.",
            "{w} employs {n} as {av}.",
        ),
    ),
    Compound(
        ("works_as", "taught_by"),
        ("{n}, {av}, was taught by {w}.",),
    ),
    Compound(
        ("studied_at", "works_for"),
        (
            "{s} studied at {v} and now works for {w}.",
            "{n}, a graduate of {v}, is employed by {w}.",
        ),
    ),
    Compound(
        ("founded_by", "founded_in"),
        (
            "{v} founded {n} in {w}.",
            "{s} was founded by {v} in {w}.",
            "In {w} {v} founded {n}.",
        ),
    ),
    Compound(
        ("founded_in", "based_in"),
        (
            "{s} was founded in {v} and is based in {w}.",
            "{n}, founded in {v}, has its head office in {w}.",
        ),
    ),
    Compound(
        ("based_in", "branch_in"),
        (
            "{s} is based in {v} and has a branch in {w}.",
            "From its head office in {v}, {n} also runs a branch in {w}.",
        ),
    ),
    Compound(
        ("staff", "led_by"),
        (
            "{s} employs {v} people and is led by {w}.",
            "{w} is the director of {s}, which employs {v} people.",
        ),
    ),
    Compound(
        ("founded_by", "led_by"),
        (
            "{s} was founded by {v} and is led by {w}.",
            "{v} founded {n}; its director is {w}.",
        ),
    ),
    Compound(
        ("population", "altitude"),
        (
            "{s} has {v} inhabitants and lies {w} above the sea.",
            "{n}, {w} above the sea, has {v} inhabitants.",
        ),
    ),
    Compound(
        ("known_for", "market_on"),
        (
            "{s} is known for its {v} and holds its market on {w}.",
            "{n}, whose market is held on {w}, is famous for its {v}.",
        ),
    ),
)

FILLERS = (
    "Old photographs of that time hang in the town hall.",
    "None of this was planned.",
    "The local newspaper printed a long article on the subject.",
    "A short film about it was shown last winter.",
    "Not everything in the old records can be trusted.",
    "Most of the letters from those years are lost.",
    "The winters in the region are long and quiet.",
    "Few people outside the valley have heard of it.",
    "The story is told at every summer fair.",
    "Older people still like to talk about it.",
)
