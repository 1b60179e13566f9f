"""The demo tasks that `foreword serve --demo` creates. Data only.

Text tasks were selected by experiment: a model of 135M parameters does them well with greedy
decoding, and visibly worse without the text. Tasks with a folder were tuned for the default model
and are created for no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefix_store.definition import Defaults, Message
from prefix_store.manifest import Profile

TUNED_FOR = "sha256:7d6cbd88e1b1e631e4b5699087afb17bd6f23a1898c7ba8040b68b725a691ef9"
"""The fingerprint of the default model."""
_TUNED = Path(__file__).parent / "tuned"


@dataclass(frozen=True, slots=True)
class DemoTask:
    """A demo task. Exactly one of `text`, `messages` and `folder` is set."""

    name: str
    profile: Profile
    example: str
    """An example prompt."""
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    folder: Path | None = None
    """Output of `foreword tune`: a PEFT folder with golden prompts."""

    def fits(self, fingerprint: str) -> bool:
        """Whether the task works with the base model of this fingerprint."""
        return self.folder is None or fingerprint == TUNED_FOR


def _chat(system: str, *turns: tuple[str, str]) -> tuple[Message, ...]:
    messages = [Message(role="system", content=system)]
    for user, assistant in turns:
        messages.append(Message(role="user", content=user))
        messages.append(Message(role="assistant", content=assistant))
    return tuple(messages)


_PIRATE = DemoTask(
    name="pirate",
    profile=Profile(
        description="Answers like a pirate captain.",
        chat=True,
        defaults=Defaults(max_tokens=48, temperature=0),
    ),
    example="What is your favourite food?",
    messages=_chat(
        "You are a pirate captain. Answer every question like a pirate, in one short sentence.",
        ("Who are you?", "Arrr, I be Captain Redbeard, terror of the seven seas!"),
        ("How is the weather?", "Arrr, a storm be coming, so hold on to yer hat, matey!"),
        (
            "What do you do all day?",
            "Arrr, I sail the sea, hunt for treasure and drink rum with me crew!",
        ),
    ),
)

_EXTRACT = DemoTask(
    name="extract",
    profile=Profile(
        description="Finds the name and the city in a sentence and answers in JSON.",
        chat=True,
        defaults=Defaults(max_tokens=40, temperature=0),
    ),
    example="Hi, this is Maria writing to you from Lisbon.",
    messages=_chat(
        "Extract the name and the city as JSON.",
        ("I am Anna and I live in Berlin.", '{"name": "Anna", "city": "Berlin"}'),
        ("My name is Tom, greetings from Oslo!", '{"name": "Tom", "city": "Oslo"}'),
    ),
)

_SENTIMENT = DemoTask(
    name="sentiment",
    profile=Profile(
        description="Says whether a review is positive or negative.",
        template="Review: {prompt}\nSentiment:",
        defaults=Defaults(max_tokens=4, temperature=0, stop=("\n",)),
    ),
    example="The room was dirty and loud.",
    text=(
        "Review: I loved every minute of it.\nSentiment: positive\n\n"
        "Review: A waste of money, it broke after a day.\nSentiment: negative\n\n"
        "Review: The staff was friendly and the food was great.\nSentiment: positive\n\n"
        "Review: Boring, slow and far too long.\nSentiment: negative\n\n"
    ),
)

_OPPOSITE = DemoTask(
    name="opposite",
    profile=Profile(
        description="Names the opposite of a word.",
        template="{prompt} ->",
        defaults=Defaults(max_tokens=6, temperature=0, stop=("\n",)),
    ),
    example="rich",
    text="hot -> cold\nbig -> small\nday -> night\nfast -> slow\n",
)


def _tuned(name: str, description: str, example: str, max_tokens: int) -> DemoTask:
    """Build a task with the prompt template of `foreword tune`."""
    defaults = Defaults(max_tokens=max_tokens, temperature=0)
    profile = Profile(description=description, template="{prompt}\n", defaults=defaults)
    return DemoTask(name=name, profile=profile, example=example, folder=_TUNED / name)


_BANKING = _tuned(
    "banking77",
    "Tells what a bank's customer wants, one of 77 intents.",
    "My card still has not arrived.",
    27,
)

_ASSISTANT = _tuned(
    "clinc150",
    "Tells what the user of an assistant wants, one of 150 intents.",
    "wake me up at seven tomorrow",
    27,
)

_RESTAURANT = _tuned(
    "e2e",
    "Makes a sentence of a restaurant's facts.",
    "name[The Owl], eatType[coffee shop], food[French], familyFriendly[yes]",
    100,
)

DEMO_TASKS: tuple[DemoTask, ...] = (
    _PIRATE,
    _EXTRACT,
    _SENTIMENT,
    _OPPOSITE,
    _BANKING,
    _ASSISTANT,
    _RESTAURANT,
)
