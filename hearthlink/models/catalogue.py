"""Short names: good small models, each pinned to one commit and one hash.

Size and hash are those of the publisher's own LFS pointer (the hub shows them on the file's page). All three are under
Apache-2.0 and answer without thinking aloud first.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearthlink.models.reference import Reference


@dataclass(frozen=True, slots=True)
class Choice:
    """A model to have. ``sha256`` and ``size`` (bytes) are known for the short names only, which have one file."""

    reference: Reference
    short: str = ""
    sha256: str = ""
    size: int = 0
    about: str = ""

    def __str__(self) -> str:
        return self.short or str(self.reference)


CATALOGUE = (
    Choice(
        Reference(
            "HuggingFaceTB",
            "SmolLM2-360M-Instruct-GGUF",
            "smollm2-360m-instruct-q8_0.gguf",
            "593b5a2e04c8f3e4ee880263f93e0bd2901ad47f",
        ),
        "smollm2-360m",
        "48ab3034d0dd401fbc721eb1df3217902fee7dab9078992d66431f09b7750201",
        386_404_992,
        "small talk in English, quick on any machine",
    ),
    Choice(
        Reference(
            "Qwen",
            "Qwen2.5-1.5B-Instruct-GGUF",
            "qwen2.5-1.5b-instruct-q4_k_m.gguf",
            "91cad51170dc346986eccefdc2dd33a9da36ead9",
        ),
        "qwen2.5-1.5b",
        "6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e",
        1_117_320_736,
        "sensible answers in many languages, for 4 GB of memory",
    ),
    Choice(
        Reference(
            "unsloth",
            "Qwen3-4B-Instruct-2507-GGUF",
            "Qwen3-4B-Instruct-2507-Q4_K_M.gguf",
            "a06e946bb6b655725eafa393f4a9745d460374c9",
        ),
        "qwen3-4b",
        "3605803b982cb64aead44f6c1b2ae36e3acdb41d8e46c8a94c6533bc4c67e597",
        2_497_281_120,
        "the best of the three, for 8 GB of memory or a GPU",
    ),
)


def by_short_name(name: str) -> Choice | None:
    return next((choice for choice in CATALOGUE if choice.short == name.lower()), None)


def by_reference(reference: Reference) -> Choice:
    """The short name's own choice where ``reference`` is the same, with its hash; else one that pins nothing."""
    return next((choice for choice in CATALOGUE if choice.reference == reference), Choice(reference))


def short_names() -> str:
    return ", ".join(choice.short for choice in CATALOGUE)
