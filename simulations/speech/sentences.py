"""English sentences people say to a voice assistant or on the telephone, drawn from a seeded grammar."""

from __future__ import annotations

import math
import random
import re
import string

from zo_common.errors import ConfigError

_SLOTS: dict[str, str] = {
    "room": "kitchen|bedroom|living room|bathroom|garage|hallway|dining room|office|attic|basement|nursery|guest room",
    "device": "lights|lamp|heating|fan|television|radio|speaker|heater|air conditioning|blinds",
    "machine": "washing machine|dishwasher|oven|kettle|coffee machine|tumble dryer|vacuum cleaner|lawn sprinkler",
    "colour": "red|blue|green|yellow|purple|orange|warm white|pale pink",
    "city": "London|Paris|Berlin|Madrid|Boston|Chicago|Dublin|Glasgow|Manchester|Sydney|Toronto|Vienna|Oxford"
    "|Liverpool",
    "country": "France|Spain|Italy|Canada|Japan|Norway|Portugal|Ireland|Australia|Mexico",
    "name": "Emma|Peter|Lucy|David|Daniel|Laura|Oliver|George|Robert|Alice|Susan|Helen|Martin|Simon|Jessica|Thomas",
    "relative": "mother|father|brother|sister|grandmother|uncle|cousin|neighbour|daughter|son|wife|husband",
    "person": "the doctor|the dentist|the plumber|my manager|my landlord|the school|the vet|my lawyer|the builder"
    "|my tutor",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "when": "today|tomorrow|tonight|this weekend|next week|this evening|on Monday|on Friday|tomorrow morning"
    "|next month",
    "part": "morning|afternoon|evening|night",
    "duration": "five minutes|ten minutes|twenty minutes|half an hour|an hour|a couple of hours",
    "weather": "rain|snow|storms|strong wind|fog|sunshine|frost|thunder|hail|heavy clouds",
    "clothes": "an umbrella|a warm coat|a raincoat|gloves|a scarf|boots|sunglasses|a jumper",
    "genre": "jazz|classical music|country music|rock|folk songs|piano music|dance music|blues|opera|film music",
    "mood": "quiet|cheerful|relaxing|gentle|lively|romantic|loud|sad",
    "dish": "chicken soup|vegetable curry|apple pie|pasta|roast potatoes|pancakes|tomato salad|mushroom rice|lamb stew"
    "|pizza",
    "food": "bread|milk|butter|cheese|carrots|onions|bananas|coffee|rice|sugar|eggs|lemons|honey|biscuits|chocolate",
    "amount": "a pound of|some|more|plenty of|a little",
    "chore": "water the plants|feed the cat|walk the dog|take out the rubbish|pay the rent|clean the windows"
    "|renew my passport|charge my phone|buy stamps|book the tickets|return the library books|lock the front door"
    "|take my medicine",
    "event": "meeting|dentist appointment|birthday party|lunch|piano lesson|football practice|wedding|job interview"
    "|dinner|swimming class|school concert|haircut|yoga class",
    "place": "station|airport|hospital|library|supermarket|post office|bank|museum|town hall|park|chemist|cinema"
    "|bakery|petrol station|swimming pool|university",
    "vehicle": "train|bus|flight|ferry|coach|tram",
    "parcel": "parcel|letter|package|new sofa|mattress|order|bookcase|laptop|bicycle",
    "spot": "with a neighbour|behind the gate|in the shed|by the back door|at the reception desk|under the porch",
    "account": "savings account|current account|joint account|business account|credit card",
    "bill": "electricity bill|gas bill|water bill|phone bill|rent|insurance|council tax|garage invoice",
    "problem": "is broken|keeps making a strange noise|has stopped working|is leaking|will not start|smells of smoke"
    "|needs a new battery|turns itself off",
    "appliance": "boiler|fridge|freezer|washing machine|printer|router|shower|alarm|microwave|toaster|doorbell",
    "late": "I am running late|the traffic is terrible|the train is delayed|I missed the bus|I have left the office"
    "|I forgot my keys|the meeting is over|I am nearly home|the car has broken down|dinner is in the oven",
    "ache": "my back hurts|my daughter has a fever|I have a sore throat|my knee is swollen|I cannot sleep"
    "|my tooth aches|I feel dizzy in the morning|my son has a cough",
    "book": "novel|cookery book|travel guide|history book|poem|magazine|bedtime story|newspaper article",
    "sport": "football|tennis|rugby|cricket|basketball|golf|hockey|cycling",
    "animal": "elephant|whale|tiger|horse|dolphin|owl|penguin|rabbit|spider|giraffe|wolf|tortoise",
    "measure": "tall|heavy|fast|old|long|big",
    "landmark": "mountain|river|bridge|castle|lake|tower|desert|island|waterfall|volcano",
    "room_type": "a double room|a single room|a family room|a quiet room|a room with a view|a room with a balcony",
    "drink": "a glass of water|a cup of tea|a black coffee|orange juice|a bottle of wine|hot chocolate|lemonade",
    "garment": "jacket|dress|shirt|blouse|hat|skirt|coat|sweater|belt|waistcoat",
    "fault": "too small|too large|the wrong colour|damaged|torn|missing a button|not what I ordered|dirty",
    "document": "contract|invoice|receipt|report|photograph|letter|form|certificate|timetable|map",
    "app": "calendar|camera|calculator|address book|torch|music player|web browser|map|voice recorder",
    "language": "French|Spanish|German|Italian|Japanese|Welsh|Polish|Arabic",
    "phrase": "good morning|thank you very much|where is the station|I would like to pay|happy birthday|see you later",
    "topic": "the election|the economy|science|local traffic|the stock market|space travel|fashion|farming|the arts",
}
"""Slot name to its fillings, separated by bars."""

_TEMPLATES = """
Set an alarm for early {day} {part}.|Wake me up in {duration}, please.|Cancel all my alarms for {day}.
Start a timer for {duration}.|Set a timer of {duration} for the {dish}.|How much time is left on the {dish} timer?
Remind me to {chore} {when}.|Do not let me forget to {chore}.|Add a reminder to {chore} every {day}.
Did I remember to {chore} last {day}?|Tell my {relative} to {chore}, please.|What is the weather like in {city} {when}?
Will there be {weather} in {city} {when}?|Is {weather} expected on {day} {part}?|Do I need {clothes} {when}?
Should I pack {clothes} for my trip to {city}?|How cold will it be in {city} on {day}?
Warn me if there is any {weather} near {city}.|Bring {clothes}, because the forecast says {weather}.
Play some {mood} {genre} in the {room}.|Play {genre} until my {relative} comes home.
I want to hear something {mood} tonight.|Turn the volume down in the {room}.|Skip this song and play {genre} instead.
Make a playlist of {mood} {genre} for the {event}.|Who wrote the song that was playing in the {room}?
Stop the music in {duration}.|Turn off the {room} {device}.|Turn on the {device} in the {room}.
Is the {device} in the {room} still on?|Make the {room} lights {colour}.|Paint the {room} {colour} before {day}.
Switch on the {machine} in {duration}.|Has the {machine} finished yet?
Please start the {machine} when I leave the house.|The {machine} in the {room} {problem}.
Close the {room} window before the {weather} starts.|Show me the camera in the {room}.
Who is waiting at the {room} door?|Put the {event} in my calendar for {day}.|Move my {event} from {day} to {day2}.
Cancel the {event} with {name} {when}.|What is in my calendar for {day} {part}?|When is my next {event} with {name}?
Invite {name} and {name2} to the {event}.|Am I free on {day} {part}?|Find a place near the {place} for the {event}.
Where does the {event} take place {when}?|Send a message to {name} saying {late}.|Tell my {relative} that {late}.
Text {name} that I will be there in {duration}.|Read my last message from {name}.|Call my {relative} on the speaker.
Ring {person} and ask about {day} {part}.|Did {name} reply to my message about the {event}?
Leave a voice message for {name}, please.|Sorry, {late}.|Forward the {document} from {name} to {person}.
Print the {document} in the {room}.|Scan this {document} and send it to {name}.
I cannot find the {document} you sent on {day}.|Please sign the {document} and return it to {person}.
Add {food} and {food2} to my shopping list.|We need {amount} {food} for the {dish}.|Take {food} off the shopping list.
Is there any {food} left in the fridge?|Where can I buy fresh {food} near the {place}?|Order {amount} {food} for {day}.
How do I make {dish} for the whole family?|Read me the recipe for {dish}, step by step.
Can I use {food} instead of {food2}?|How long should the {dish} stay in the oven?|My {relative} does not like {dish}.
I would like {drink} and the {dish}.|Could we have {drink} while we wait?
Book a table near the {place} for {day} {part}.|The {dish} was cold when it arrived.
What is the balance of my {account}?|Move some money from my {account} to {name}.|I want to close my {account}.
Pay the {bill} from my {account}.|When is the {bill} due?|The {bill} is much higher than last month.
I lost my card near the {place}, please block it.|There is a payment to {person} that I do not know.
Can I speak to someone about my {account}?|Please post a new {account} statement to my {relative}.
Where is the {parcel} I ordered last {day}?|Please leave the {parcel} {spot}.
Can you deliver the {parcel} on {day} {part}?|The {parcel} arrived damaged, and I want a refund.
My {relative} will sign for the {parcel}.|Nobody was home, so it is {spot}.
I would like to return the {garment}, because it is {fault}.|Do you have this {garment} in {colour}?
The {garment} I bought on {day} is {fault}.|How much is the {colour} {garment} in the window?
I need an appointment with {person} {when}.|Can {person} call me back on {day}?|I have to see {person}, because {ache}.
Hello, {ache}, and I need some advice.|Please change my appointment with {person} to {day}.
Is {person} open on {day} {part}?|How do I get to the {place} from here?
What is the quickest way to the {place} in {city}?|Is there another {place} near the {place2}?
How long does it take to walk to the {place}?|Avoid the bridge and drive past the {place}.
Share my location with {name}.|When does the next {vehicle} to {city} leave?
Book a {vehicle} from {city} to {city2} for {day}.|Is the {vehicle} to {city} on time?
I left my {document} on the {vehicle} to {city}.|Which platform does the {city} {vehicle} leave from?
Book {room_type} in {city} for {day}.|I would prefer {room_type}, away from the street.|Do I need a visa for {country}?
What is the largest {landmark} in {country}?|How far is it from {city} to {city2}?
Take a picture of the {landmark} behind us.|Tell me about the famous {landmark} near {city}.
We are spending our holiday in {country} {when}.|My {appliance} {problem}, can you send someone {when}?
The {appliance} in the {room} {problem}.|How do I reset the {appliance}?
Who can repair {machine2} like mine near {city}?|The engineer will look at the {appliance} on {day} {part}.
How {measure} is a fully grown {animal}?|What does a wild {animal} eat in winter?
Tell my {relative} a story about a clever {animal}.|What sound does {animal2} make at night?
My {relative} saw a {animal3} near the {landmark}.|Who won the {sport} match between {country} and {country2}?
When does the {sport} start on {day}?|Is there {sport} on television {when}?
My {relative} plays {sport} every {day} {part}.|Record the {sport} for my {relative}, please.
Read the next chapter of my {book}.|Find a {book} about {landmark2} in {country}.
Who wrote the {book} you read to {name}?|How do you say {phrase} in {language}?
Translate this {document} into {language}.|I am learning {language} with my {relative}.|Open the {app} on my phone.
Close the {app} and open the {app2}.|Why does the {app} use so much battery?|What is the latest news about {topic}?
Give me a short summary of the news on {topic}.|I am not interested in {topic}.
"""
"""One template between bars or line ends; a digit after a slot's name asks for another filling of the same slot."""

_DERIVED = {
    "machine2": "washing machines|dishwashers|ovens|coffee machines|vacuum cleaners",
    "animal2": "an elephant|a whale|a tiger|an owl|a penguin|a wolf|a dolphin|a horse",
    "animal3": "rabbit|horse|wolf|tortoise|spider",
    "landmark2": "mountains|rivers|castles|lakes|islands|volcanoes|deserts",
}
"""Plurals and articles that a plain second filling would get wrong."""

_FIELD = re.compile(r"\{(\w+)\}")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _fillings(slot: str) -> list[str]:
    return (_DERIVED.get(slot) or _SLOTS[slot.rstrip(string.digits)]).split("|")


def _templates() -> list[str]:
    return [template.strip() for template in re.split(r"[|\n]", _TEMPLATES) if template.strip()]


def sentence_key(sentence: str) -> str:
    """Return the words of a sentence in lower case, without punctuation: those of equal sentences are equal."""
    return " ".join(sentence.lower().translate(_PUNCTUATION).split())


def _fill(template: str, rng: random.Random) -> str:
    used: set[str] = set()

    def choose(match: re.Match[str]) -> str:
        choices = [filling for filling in _fillings(match[1]) if filling not in used]
        chosen = rng.choice(choices)
        used.add(chosen)
        return chosen

    return _FIELD.sub(choose, template)


def _variety(template: str) -> int:
    """Ways to fill a template, counting those that would repeat a filling."""
    return math.prod(len(_fillings(slot)) for slot in _FIELD.findall(template))


def sentences(count: int, seed: int) -> list[str]:
    """`count` distinct sentences, every template used about equally often, the same for the same seed.

    Raises ConfigError where the count is negative or more than the grammar can give.
    """
    if count < 0:
        raise ConfigError(f"Cannot make {count} sentences: ask for none or more.")
    rng = random.Random(seed)
    templates = _templates()
    if count > (limit := sum(_variety(template) for template in templates)):
        raise ConfigError(f"Asked for {count} sentences, but the grammar has about {limit}: ask for fewer.")
    found: dict[str, str] = {}
    idle_rounds = 0
    while len(found) < count and idle_rounds < 10:
        before = len(found)
        for template in rng.sample(templates, len(templates)):
            if len(found) == count:
                break
            sentence = _fill(template, rng)
            found.setdefault(sentence_key(sentence), sentence)
        idle_rounds = idle_rounds + 1 if len(found) == before else 0
    if len(found) < count:
        raise ConfigError(f"Asked for {count} distinct sentences, found {len(found)}: ask for fewer.")
    return list(found.values())


def split_sentences(train: int, dev: int, test: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Return three lists of the given lengths with no sentence (as `sentence_key` compares them) in two of them.

    Raises ConfigError where a length is negative or the grammar cannot give so many.
    """
    for name, length in (("train", train), ("dev", dev), ("test", test)):
        if length < 0:
            raise ConfigError(f"Cannot make {length} {name} sentences: ask for none or more.")
    everything = sentences(train + dev + test, seed)
    return everything[:train], everything[train : train + dev], everything[train + dev :]
