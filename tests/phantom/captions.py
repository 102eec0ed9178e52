"""One sentence about a film from its attributes, as a hurried reader might dictate it, with the noise of reports."""

from __future__ import annotations

from anatomy import CLASSES, Draws, Patient

__all__ = ["write_caption"]

EMPTY = (
    "frontal chest film",
    "portable chest radiograph of an adult",
    "chest film of a {build} patient",
    "follow up chest radiograph, compare with the previous film",
)
OPENINGS = (
    "",
    "chest film with ",
    "frontal radiograph, ",
    "chest radiograph of a {build} patient, ",
    "adult patient, ",
)
GRADES = {
    "small": ("small", "mild", "slight", "subtle"),
    "moderate": ("moderate", "moderate", "medium sized"),
    "large": ("large", "marked", "severe", "extensive"),
    "": ("",),
}
SENTENCES = {
    "normal": (
        "normal chest, no acute finding",
        "both lungs are clear and the heart has a normal size",
        "clear lungs, sharp costophrenic angles",
        "heart of normal width, no effusion and no nodule",
        "lung markings reach the chest wall on both sides",
        "normal film, smooth diaphragm and clear lung fields",
        "no focal opacity, normal cardiac silhouette",
    ),
    "nodule": (
        "{grade} {margin} nodule in the {zone} zone of the {side} lung",
        "{grade} rounded opacity in the {side} lung, {zone} zone",
        "{number} with a {margin} border in the {side} lung",
        "round white spot over the {side} {zone} lung field",
        "coin lesion in the {zone} {side} lung, {margin} margin",
        "{grade} focal round density, {margin}, surrounded by clear lung",
    ),
    "effusion": (
        "{grade} {side} pleural effusion",
        "{grade} effusion with blunting of the {side} costophrenic angle",
        "fluid layering at the {side} base with a meniscus",
        "{grade} dense white opacity at the {side} lung base hides the diaphragm",
        "curved fluid level climbing the {side} chest wall",
        "{side} lower zone is white, the diaphragm is obscured by fluid",
    ),
    "cardiomegaly": (
        "{grade} cardiomegaly",
        "{grade} enlargement of the cardiac silhouette",
        "heart wider than half of the thorax",
        "enlarged heart, increased cardiothoracic ratio",
        "the heart shadow is broad and reaches far to the left chest wall",
        "{grade} enlarged globular heart, lungs are clear",
    ),
    "pneumothorax": (
        "{grade} {side} pneumothorax",
        "{grade} collapse of the {side} lung with air in the pleural space",
        "thin white pleural line on the {side}, no lung markings beyond it",
        "dark rim of air along the {side} chest wall",
        "{side} lung edge is visible and separated from the ribs by black air",
        "absent lung markings at the {side} apex",
    ),
}
SIDE_WORDS = {"left": "left", "right": "right", "both": "bilateral", "": ""}
COUNT_WORDS = {0: "", 1: "single nodule", 2: "two nodules", 3: "several nodules"}


def write_caption(patient: Patient, draws: Draws, *, empty: float = 0.15, wrong: float = 0.06) -> str:
    """Describe ``patient``; with chance ``empty`` say nothing of use, with chance ``wrong`` describe another class."""
    kind = draws.generator.random()
    if kind < empty:
        return draws.choice(EMPTY).format(build=patient.build)
    label = draws.choice(CLASSES) if kind < empty + wrong else patient.label
    sentence = draws.choice(OPENINGS) + draws.choice(SENTENCES[label])
    words = sentence.format(
        grade=draws.choice(GRADES[patient.size]),
        side=SIDE_WORDS[patient.side],
        zone=patient.zone,
        margin=patient.margin,
        number=COUNT_WORDS[patient.count],
        build=patient.build,
    ).split()
    return " ".join(words).replace(" ,", ",")
