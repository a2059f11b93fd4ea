"""How questions are asked in training and, the last of each template, in validation alone.

``[a|b]`` is one of its alternatives, drawn for each question; ``{slot}`` is filled by the template.
"""

from __future__ import annotations

SHOW = "[Show|List|Give|Find|Return]"

PHRASINGS: dict[str, list[str]] = {
    "filter": [
        SHOW + " the {column} of [all|the] {things} whose {where} is {value}.",
        "What is the {column} of [each|every] {thing} with {where} {value}?",
        SHOW + " the {column} for {things} where the {where} is {value}.",
        "For [all|the] {things} with {where} {value}, [show|list|give] the {column}.",
        "{things} with {where} {value}: what is their {column}?",
        "Which {column} do the {things} with {where} {value} have?",
        "I need the {column} of every {thing} that has {value} as its {where}.",
        "Those {things} where {where} equals {value}: [show|print|name] the {column}.",
        "[Get|Fetch|Display] the {column} from {things} having {value} for {where}.",
        "When the {where} of [a|one] {thing} is {value}, what is the {column}?",
        "Tell me the {column} of those {things} that have the {where} {value}.",
    ],
    "both": [
        SHOW + " the {column} of {things} whose {where} is {value} and whose {number} is "
        "[above|over|more than] {low}.",
        "What is the {column} of each {thing} with {where} {value} and a {number} [greater|higher] "
        "than {low}?",
        SHOW + " the {column} for {things} where the {where} is {value} and the {number} exceeds "
        "{low}.",
        "For {things} with {where} {value} and {number} [over|above] {low}, [show|give] the "
        "{column}.",
        "Which {column} do the {things} with {where} {value} and more than {low} {number} have?",
        "{things} with {where} {value} and a {number} above {low}: what is their {column}?",
        "I need the {column} of every {thing} that has {value} as its {where} and a {number} over "
        "{low}.",
        "[Get|Fetch|Display] the {column} from {things} having {value} for {where} and "
        "[over|above] {low} for {number}.",
        "Those {things} where {where} equals {value} and {number} is [bigger|larger] than "
        "{low}: [show|print|name] the {column}.",
        "With a {number} of more than {low} and the {where} {value}, which {things} are there? "
        "Give the {column}.",
        "Among {things} with {where} {value}, tell me the {column} of those with {number} larger "
        "than {low}.",
    ],
    "count": [
        "How many {things} have {where} {value}?",
        "[Count|Find the number of] [all|the] {things} whose {where} is {value}.",
        "What is the number of {things} with {where} {value}?",
        "How many {things} are there with the {where} {value}?",
        "[Give|Tell me] the number of {things} where the {where} is {value}.",
        "For how many {things} is the {where} {value}?",
        "With {value} as their {where}, how many {things} are there?",
        "[Get|Display] the total count of {things} having {value} for {where}.",
        "[Count|Number of] {things} with {where} equal to {value}.",
        "Of all {things}, how many are listed under the {where} {value}?",
        "How many of the {things} are {value} by {where}?",
    ],
    "aggregate": [
        "What is the {aggregate} {number} of [all|the] {things} whose {where} is {value}?",
        SHOW + " the {aggregate} {number} of {things} with {where} {value}.",
        "For {things} with {where} {value}, what is the {aggregate} {number}?",
        "[Compute|Calculate|Find] the {aggregate} {number} for {things} where the {where} is "
        "{value}.",
        "What {aggregate} {number} do {things} with {where} {value} have?",
        "The {aggregate} {number} among {things} that have {value} as their {where}?",
        "Which is the {aggregate} {number} of any {things} with the {where} {value}?",
        "[Get|Fetch|Display] the {aggregate} {number} from {things} having {value} for {where}.",
        "Those {things} where {where} equals {value}: what is the {aggregate} of their {number}?",
        "When the {where} is {value}, what is the {aggregate} {number} of {things}?",
        "Looking only at {things} with {where} {value}, tell me the {aggregate} {number}.",
    ],
    "group": [
        "What is the {aggregate} {number} of {things} for each {by}?",
        SHOW + " [each|every] {by} and the {aggregate} {number} of its {things}.",
        "For each {by} of {things}, [show|give|find] the {aggregate} {number}.",
        "[Compute|Calculate] the {aggregate} {number} of {things} per {by}.",
        "{aggregate} {number} of the {things} by {by}?",
        "Group the {things} by {by} and [show|give] the {aggregate} {number} of each group.",
        "Per {by}, what {aggregate} {number} do the {things} have?",
        "[Get|Fetch|Display] the {aggregate} {number} of {things} within each {by}.",
        "How does the {aggregate} {number} of {things} differ by {by}?",
        "Break the {things} down by {by}: what is the {aggregate} {number}?",
        "List every {by} together with the {aggregate} {number} over its {things}.",
    ],
    "having": [
        "Which {by} has more than {count} {things}?",
        SHOW + " [each|every] {by} that has more than {count} {things}.",
        "Which {by} occurs in [more than|over] {count} {things}?",
        "For which {by} are there more than {count} {things}?",
        SHOW + " the {by} of {things} that is shared by more than {count} of them.",
        "Which {by} values appear more than {count} times among the {things}?",
        "Group the {things} by {by}: which groups have more than {count}?",
        "[Get|Fetch|Display] the {by} found in more than {count} {things}.",
        "A {by} counts if more than {count} {things} have it: [show|print|name] each.",
        "Where do more than {count} {things} share one {by}? [Print|Name] the {by}.",
        "Name each {by} with over {count} {things}.",
    ],
    "between": [
        SHOW + " the {column} of [all|the] {things} whose {number} is between {low} and {high}.",
        "What is the {column} of each {thing} with a {number} [from|of] {low} to {high}?",
        SHOW + " the {column} for {things} where the {number} lies between {low} and {high}.",
        "For {things} with {number} between {low} and {high}, [show|give|list] the {column}.",
        "Which {column} do the {things} with a {number} between {low} and {high} have?",
        "{things} with {number} from {low} to {high}: what is their {column}?",
        "I need the {column} of every {thing} with at least {low} and at most {high} {number}.",
        "[Get|Fetch|Display] the {column} from {things} having a {number} no less than {low} "
        "and no more than {high}.",
        "Those {things} where {number} is within {low} and {high}: [show|print|name] the {column}.",
        "When the {number} falls between {low} and {high}, what is the {column} of the {thing}?",
        "Tell me the {column} of those {things} that have {number} in the range {low} to {high}.",
    ],
    "like": [
        SHOW + " the {column} of [all|the] {things} whose {label} [starts|begins] with {letters}.",
        "What is the {column} of each {thing} with a {label} that [starts|begins] with {letters}?",
        SHOW + " the {column} for {things} where the {label} starts with {letters}.",
        "For {things} whose {label} begins with {letters}, [show|list|give] the {column}.",
        "Which {column} do the {things} with a {label} starting with {letters} have?",
        "{things} with a {label} beginning with {letters}: what is their {column}?",
        "I need the {column} of every {thing} that has {letters} at the start of its {label}.",
        "[Get|Fetch|Display] the {column} from {things} having a {label} with the first "
        "letters {letters}.",
        "Those {things} where {label} starts in {letters}: [show|print|name] the {column}.",
        "Whenever the {label} of a {thing} begins with {letters}, print the {column}.",
        "If the first letters of the {label} of {things} are {letters}, tell me the {column}.",
    ],
    "distinct": [
        SHOW + " the [different|distinct] {column} values of {things} whose {number} is "
        "[above|over|more than] {low}.",
        "What are the [different|distinct] {column} values of {things} with a {number} above "
        "{low}?",
        SHOW + " each {column} once for {things} where the {number} exceeds {low}.",
        "Which different {column} values do {things} with more than {low} {number} have?",
        "For {things} with {number} over {low}, [show|list|give] each {column} only once.",
        "Without repeats, [show|list|give] the {column} of {things} with a {number} greater than "
        "{low}.",
        "Which unique {column} values occur among {things} with {number} higher than {low}?",
        "[Get|Fetch|Display] the set of {column} values from {things} having a {number} above "
        "{low}.",
        "Those {things} where {number} is [bigger|larger] than {low}: which different {column} "
        "values are there?",
        "Each {column} just one time, for {things} with {number} above {low}.",
        "Name the {column} of {things} that have {number} larger than {low}, without duplicates.",
    ],
    "top": [
        SHOW + " the {column} of the {count} {things} with the {extreme} {number}.",
        "What is the {column} of the {count} {things} that have the {extreme} {number}?",
        "Which {count} {things} have the {extreme} {number}? [Show|Give|List] their {column}.",
        "For the {count} {things} with the {extreme} {number}, [show|list|give] the {column}.",
        "{column} of the {count} {things} with {extreme} {number}?",
        "[Take|Find] the {count} {things} of {extreme} {number} and show the {column}.",
        "Sorted from the {extreme} {number}, what is the {column} of the first {count} {things}?",
        "[Get|Fetch|Display] the {column} from the {count} {things} having the {extreme} {number}.",
        "Rank {things} by {number}, {extreme} first: [show|print|name] the {column} of the "
        "first {count}.",
        "Which are the {count} {things} with {extreme} {number}? Give each {column}.",
        "I want {count} {things}, those with the {extreme} {number}: tell me the {column}.",
    ],
    "before": [
        SHOW + " the {column} of [all|the] {things} whose {day} is before {date}.",
        "What is the {column} of each {thing} with a {day} [before|earlier than] {date}?",
        SHOW + " the {column} for {things} where the {day} is [before|earlier than] {date}.",
        "For {things} with {day} before {date}, [show|list|give] the {column}.",
        "Which {column} do the {things} with a {day} before {date} have?",
        "{things} with a {day} earlier than {date}: what is their {column}?",
        "I need the {column} of every {thing} that has a {day} prior to {date}.",
        "[Get|Fetch|Display] the {column} from {things} having a {day} of less than {date}.",
        "Those {things} where {day} comes before {date}: [show|print|name] the {column}.",
        "When the {day} of a {thing} was earlier than {date}, what is the {column}?",
        "Tell me the {column} of those {things} that had their {day} before {date} came.",
    ],
    "period": [
        "How many {things} have a {day} between {first} and {last}?",
        "[Count|Find the number of] {things} whose {day} is between {first} and {last}.",
        "What is the number of {things} with {day} from {first} to {last}?",
        "How many {things} are there with a {day} from {first} to {last}?",
        "[Give|Tell me] the number of {things} where the {day} lies between {first} and {last}.",
        "For how many {things} is the {day} between {first} and {last}?",
        "Between {first} and {last}, how many {things} had their {day}?",
        "[Get|Display] the total count of {things} having a {day} no earlier than {first} and "
        "no later than {last}.",
        "[Count|Number of] {things} with {day} within {first} and {last}.",
        "Of all {things}, how many have a {day} that falls between {first} and {last}?",
        "How many of the {things} have {day} in the period {first} to {last}?",
    ],
    "year": [
        SHOW + " the {column} of [all|the] {things} whose {day} is in {year}.",
        "What is the {column} of each {thing} with a {day} in [the year |]{year}?",
        SHOW + " the {column} for {things} where the {day} was in {year}.",
        "For {things} with a {day} in {year}, [show|list|give] the {column}.",
        "Which {column} do the {things} with {day} in the year {year} have?",
        "{things} with a {day} during {year}: what is their {column}?",
        "I need the {column} of every {thing} that has a {day} in {year}.",
        "[Get|Fetch|Display] the {column} from {things} having {year} as the year of the {day}.",
        "Those {things} where {day} falls in {year}: [show|print|name] the {column}.",
        "When the {day} of a {thing} was in {year}, what is the {column}?",
        "Tell me the {column} of those {things} that had their {day} in the course of {year}.",
    ],
    "join": [
        SHOW + " the {owner}'s {label} and the {column} of [each|every] {thing}.",
        "For [each|every] {thing}, [show|give|list] the {label} of its {owner} and its {column}.",
        "What are the {owner} {label} and the {column} of each {thing}?",
        SHOW + " the {label} of the {owner} with the {column} of each of the {things}.",
        "[Match|Join] each {thing} with its {owner}: show the {owner}'s {label} and the {column}.",
        "Which {owner} {label} belongs to which {thing}? Show the {label} and the {column}.",
        "For all {things}: the {label} of the {owner}, then the {column}.",
        "[Get|Fetch|Display] {owner} {label} and {thing} {column} for every {thing}.",
        "Who or what does each {thing} belong to? [Print|Name] the {owner} {label}, then the "
        "{column}.",
        "Pair the {label} of each {owner} with the {column} of their {things}.",
        "Next to the {label} of its {owner}, tell me the {column} of every {thing}.",
    ],
    "join_filter": [
        SHOW + " the {column} of [all|the] {things} whose {owner} has {where} {value}.",
        "What is the {column} of each {thing} of {owners} with {where} {value}?",
        SHOW + " the {column} for {things} where the {owner}'s {where} is {value}.",
        "For {things} of {owners} whose {where} is {value}, [show|list|give] the {column}.",
        "Which {column} do the {things} of {owners} with {where} {value} have?",
        "{things} whose {owner}'s {where} is {value}: what is their {column}?",
        "I need the {column} of every {thing} that belongs to [a|some] {owner} with {where} "
        "{value}.",
        "[Get|Fetch|Display] the {column} from {things} linked to {owners} having {value} for "
        "{where}.",
        "Those {things} where {where} of the {owner} equals {value}: [show|print|name] the "
        "{column}.",
        "When the {owner} has {value} for {where}, what is the {column} of the {thing}?",
        "Looking at {owners} that have {value} as {where}, tell me the {column} of their {things}.",
    ],
    "most": [
        "Which {owner} has the most {things}? [Show|Give] the {label}.",
        "What is the {label} of the {owner} with the most {things}?",
        SHOW + " the {label} of the {owner} that has the [most|largest number of] {things}.",
        "{label} of the {owner} with the [highest|largest] number of {things}?",
        "Find the {owner} that the most {things} belong to and show the {label}.",
        "No {owner} has more {things} than this one: what is its {label}?",
        "Among {owners}, what is the {label} of the one with the greatest number of {things}?",
        "[Get|Fetch|Display] the {label} from the {owner} having the most {things}.",
        "Count the {things} of each {owner}: [show|print|name] the {label} with the highest count.",
        "To which {owner} do most {things} belong? Give the {label}.",
        "Tell me the {label} of the {owner} that leads by number of {things}.",
    ],
    "above": [
        SHOW + " the {column} of [all|the] {things} whose {number} is above [average|the average].",
        "What is the {column} of each {thing} with [an above-average|more than the average] "
        "{number}?",
        SHOW + " the {column} for {things} where the {number} is higher than the average {number}.",
        "For {things} with a {number} above the average, [show|list|give] the {column}.",
        "Which {column} do the {things} with {number} over the average {number} have?",
        "{things} with above-average {number}: what is their {column}?",
        "I need the {column} of every {thing} with a {number} greater than the mean of all.",
        "[Get|Fetch|Display] the {column} from {things} having more than average {number}.",
        "Those {things} where {number} is [bigger|larger] than average: [show|print|name] the "
        "{column}.",
        "When the {number} of a {thing} beats the average, what is the {column}?",
        "Tell me the {column} of those {things} that exceed the average {number}.",
    ],
    "without": [
        SHOW + " the {label} of [all|the] {owners} that have no {things}.",
        "Which {owners} have no {things}? [Show|Give|List] their {label}.",
        "What is the {label} of each {owner} without [any |]{things}?",
        SHOW + " the {label} of [each|every] {owner} that does not have any {things}.",
        "For {owners} without {things}, [show|list|give] the {label}.",
        "{owners} with no {things} at all: what is their {label}?",
        "I need the {label} of every {owner} that is not linked to any {thing}.",
        "[Get|Fetch|Display] the {label} from {owners} having no {things}.",
        "Those {owners} where no {thing} is found: [show|print|name] the {label}.",
        "Not a single {thing} belongs to some {owners}: what is their {label}?",
        "Tell me the {label} of those {owners} for whom there are zero {things}.",
    ],
}
