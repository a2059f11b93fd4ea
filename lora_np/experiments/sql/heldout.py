"""Phrasings of the test split, written without sight of those of training."""

PHRASINGS: dict[str, list[str]] = {
    "filter": [
        "What is the {column} of each {thing} whose {where} is {value}?",
        "Only {things} with {value} as their {where} matter to me; list the {column} of every one.",
        "For every {thing} that has the {where} {value}, I need the {column}.",
        "Pick out the {things} with {where} equal to {value} and show the {column} of each.",
    ],
    "both": [
        "Which {column} have {things} whose {where} is {value} and whose {number} exceeds {low}?",
        "I need the {column} of each {thing} with {number} over {low} and {value} as its {where}.",
        "{things} with {where} {value} and also {number} above {low}: give me their {column}",
        "If {number} is more than {low} and {where} is {value}, state the {column} of the {thing}.",
    ],
    "count": [
        "How many of our {things} have {value} as their {where}?",
        "With {where} {value}, how many {things} are there?",
        "I'd like to know the number of {things} whose {where} is {value}.",
        "number of {things}, only those with the {where} {value}, quickly please",
    ],
    "aggregate": [
        "If we look only at {things} whose {where} is {value}, what is the {aggregate} {number}?",
        "What's the {aggregate} {number} across all {things} with {where} {value}?",
        "{aggregate} {number} please, just for the {things} that have {value} as {where}",
        "Please report, for {things} with the {where} {value}, the {aggregate} {number}.",
    ],
    "group": [
        "What are the different {by} values, and the {aggregate} {number} of {things} for each?",
        "For every {by}, I want to see the {by} and then the {aggregate} {number} of its {things}.",
        "{things}: each {by} and next to it the {aggregate} {number}",
        "Please state each {by} of the {things} with the corresponding {aggregate} {number}.",
    ],
    "having": [
        "Which {by} values are shared by more than {count} {things}?",
        "Tell me every {by} that has more than {count} {things}.",
        "Looking at the {things}, which values of {by} turn up more than {count} times?",
        "More than {count} {things} must have the same {by}: name each such {by}.",
    ],
    "between": [
        "What is the {column} of each {thing} with {number} at least {low} and at most {high}?",
        "{things} with {number} {low} to {high} inclusive, their {column} please",
        "If {number} is no less than {low} and no more than {high}, report the {thing}'s {column}.",
        "I'm after the {column} of {things} whose {number} is {low} to {high}, ends included.",
    ],
    "like": [
        "What is the {column} of every {thing} whose {label} starts with {letters}?",
        "If the {label} begins with {letters}, I want to see the {column} of the {thing}.",
        "{things} with {letters} at the start of their {label}: which {column}?",
        "Kindly state the {column} for those {things} with the {label} beginning with {letters}.",
    ],
    "distinct": [
        "Which different values of {column} occur among {things} with {number} over {low}?",
        "Looking at {things} whose {number} exceeds {low}, give me each {column} just once.",
        "every {column} of the {things} with {number} above {low}, no repeats",
        "Without duplicates, list the {column} of {things} whose {number} is more than {low}.",
    ],
    "top": [
        "What {column} have the {count} {things} with the {extreme} {number}, {extreme} first?",
        "Rank the {things}, {extreme} {number} first, and give the {column} of the first {count}.",
        "{count} {things} with the {extreme} {number}, just the {column}, {extreme} at the start",
        "Starting at the {extreme} {number}, state the {column} of the first {count} {things}.",
    ],
    "before": [
        "Which {column} do we have for {things} with the {day} earlier than {date}?",
        "What's the {column} of each {thing} whose {day} is before {date}?",
        "{day} prior to {date}: {column} of those {things} please",
        "Please report, for all {things} whose {day} precedes {date}, the {column}.",
    ],
    "period": [
        "How many {things} have their {day} from {first} to {last}, both dates included?",
        "What number of {things} has its {day} no earlier than {first} and no later than {last}?",
        "{first} through {last} inclusive: how many {things} have their {day} then?",
        "How many {things} had the {day} on or after {first} and on or before {last}?",
    ],
    "year": [
        "What is the {column} of each {thing} whose {day} was in {year}?",
        "Could you pull up all {things} with the {day} during {year} and give me their {column}?",
        "{year} only (going by {day}): {column} of the {things}",
        "Of the {things} with the {day} within the calendar year {year}, state the {column}.",
    ],
    "join": [
        "For every {thing}, what is the {label} of its {owner}, and what is its own {column}?",
        "For all {things}, show the {label} of the {owner} and then the {column} of the {thing}.",
        "{owner} {label} first, then {thing} {column}, for each of the {things}",
        "All {things} please: the {owner}'s {label}, followed by the {thing}'s {column}.",
    ],
    "join_filter": [
        "What is the {column} of each {thing} whose {owner} has {value} as {where}?",
        "Take the {owners} with {where} {value}: which {column} do their {things} have?",
        "{things} belonging to any {owner} with the {where} {value}, only the {thing}'s {column}",
        "If the {where} of the {owner} is {value}, please report the {column} of the {thing}.",
    ],
    "most": [
        "Could you tell me the {label} of whichever {owner} has the most {things}?",
        "What is the {label} of the {owner} with the largest number of {things}?",
        "most {things} of all {owners}: {label} of that one {owner} please",
        "No other {owner} has as many {things} as this one: what is its {label}?",
    ],
    "above": [
        "Which {column} do we see for {things} with {number} above the average of all {things}?",
        "Wherever {number} is over the average of all {things}, give the {thing}'s {column}.",
        "{column} of each {thing} whose {number} beats the overall average {number}",
        "Taking the mean {number} of all {things}, state the {column} of those that exceed it.",
    ],
    "without": [
        "Could you tell me the {label} of all {owners} that don't have a single {thing}?",
        "What is the {label} of every {owner} that has no {things} at all?",
        "{owners} with zero {things}, their {label} please",
        "There may be {owners} to which no {thing} belongs: kindly state the {label} of each.",
    ],
}
