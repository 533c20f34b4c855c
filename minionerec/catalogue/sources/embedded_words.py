"""The vocabulary of the embedded catalogue.

Departments, what fits together, product lines, sizes and categories.

Brands and systems are invented. A department is bought as a kit: a main product of one system, then
accessories that fit the same system, roughly in the order of ``Department.leaves``.
``minionerec/catalogue/sources/embedded.py`` combines the words.
"""

from __future__ import annotations

from typing import NamedTuple


class Leaf(NamedTuple):
    """A narrow category, whose items differ in product line or, given ``sizes``, in size."""

    group: str  # second level of the category path
    name: str  # third level, plural
    noun: str  # what one item is called in its title
    purpose: str  # ends the sentence "... for ..."
    sizes: tuple[str, ...] = ()  # one per entry of SCALES
    consumable: bool = False  # bought again and again


class Department(NamedTuple):
    """A first-level category; ``leaves[0]`` is the main product of its kits."""

    name: str
    fits: str  # how compatibility is said, e.g. "{} mount"
    systems: tuple[str, ...]
    makers: tuple[str, ...]  # the brand behind each system
    partners: tuple[str, ...]  # the second brand that makes accessories for it
    leaves: tuple[Leaf, ...]


class Line(NamedTuple):
    """A product line: price, material and look that a buyer stays with in all departments."""

    name: str
    tier: str
    material: str
    colour: str


class Scale(NamedTuple):
    """A size step: how heavily a buyer uses things, whatever the department."""

    name: str
    use: str


LINES = (
    Line("Basic", "low-priced", "moulded plastic", "white"),
    Line("Classic", "mid-range", "brushed aluminium", "silver"),
    Line("Pro", "professional", "hardened steel", "black"),
    Line("Nature", "sustainable", "recycled bamboo", "green"),
    Line("Royal", "luxury", "polished brass and leather", "gold"),
)

SCALES = (
    Scale("Pocket", "travellers who pack light"),
    Scale("Solo", "one person with little space"),
    Scale("Everyday", "daily use at home"),
    Scale("Family", "a big household with children"),
    Scale("Industrial", "heavy use in a business"),
)

PHOTOGRAPHY = Department(
    "Photography",
    "{} camera mount",
    ("Falcon", "River", "Ember", "Maple"),
    ("Helvik", "Sorano", "Pentara", "Lumiq"),
    ("Clearbay", "Optiform", "Vantis", "Okulon"),
    (
        Leaf(
            "Cameras",
            "Mirrorless Cameras",
            "Mirrorless Camera",
            "stills and video in changing light",
        ),
        Leaf(
            "Camera Power",
            "Camera Batteries",
            "Camera Battery",
            "long days of shooting",
            ("500 mAh", "900 mAh", "1400 mAh", "2000 mAh", "4000 mAh"),
        ),
        Leaf("Lenses", "Prime Lenses", "Prime Lens", "portraits with a soft background"),
        Leaf(
            "Memory",
            "Memory Cards",
            "Memory Card",
            "burst series and 4K video",
            ("16 GB", "32 GB", "64 GB", "256 GB", "1 TB"),
            True,
        ),
        Leaf(
            "Lens Accessories",
            "Polarising Filters",
            "Polarising Filter",
            "deep skies and water without glare",
        ),
        Leaf(
            "Lens Care",
            "Lens Cleaning Wipes",
            "Lens Cleaning Wipes",
            "glass without streaks",
            ("5 wipes", "20 wipes", "50 wipes", "100 wipes", "500 wipes"),
            True,
        ),
        Leaf("Lighting", "Flashes", "Hot Shoe Flash", "even light indoors"),
        Leaf(
            "Carrying",
            "Camera Bags",
            "Camera Shoulder Bag",
            "carrying a body with lenses",
            ("2 litre", "4 litre", "8 litre", "15 litre", "40 litre"),
        ),
        Leaf("Video", "Microphones", "On-Camera Microphone", "clear voices in the wind"),
        Leaf(
            "Supports",
            "Tripods",
            "Tripod",
            "sharp pictures at night",
            ("20 cm", "60 cm", "120 cm", "160 cm", "220 cm"),
        ),
    ),
)

POWER_TOOLS = Department(
    "Power Tools",
    "{} tool battery platform",
    ("Thunder", "Granite", "Comet", "Walrus"),
    ("Brakko", "Titanor", "Voltrex", "Hammerson"),
    ("Gripwell", "Steelo", "Borivo", "Makkel"),
    (
        Leaf(
            "Drilling",
            "Cordless Drills",
            "Cordless Drill Driver",
            "driving screws and drilling wood",
        ),
        Leaf(
            "Tool Power",
            "Tool Chargers",
            "Rapid Tool Charger",
            "topping up packs during a break",
            ("1 amp", "2 amp", "4 amp", "8 amp", "20 amp"),
        ),
        Leaf("Sawing", "Circular Saws", "Cordless Circular Saw", "straight cuts in boards"),
        Leaf(
            "Sawing",
            "Saw Blades",
            "Saw Blade",
            "splinter-free edges",
            ("65 mm", "85 mm", "140 mm", "190 mm", "355 mm"),
            True,
        ),
        Leaf("Sanding", "Orbital Sanders", "Cordless Orbital Sander", "surfaces ready for paint"),
        Leaf(
            "Sanding",
            "Sandpaper Discs",
            "Sandpaper Discs",
            "a fine and even finish",
            ("5 discs", "10 discs", "25 discs", "50 discs", "500 discs"),
            True,
        ),
        Leaf("Site Equipment", "Work Lights", "Cordless Work Light", "dark cellars and attics"),
        Leaf(
            "Garden",
            "Hedge Trimmer Blades",
            "Hedge Trimmer Blade",
            "tidy hedges",
            ("15 cm", "30 cm", "45 cm", "60 cm", "90 cm"),
        ),
        Leaf("Cleaning", "Leaf Blowers", "Cordless Leaf Blower", "paths free of leaves"),
        Leaf(
            "Tool Storage",
            "Tool Boxes",
            "Tool Box",
            "everything in one place",
            ("5 litre", "10 litre", "20 litre", "40 litre", "120 litre"),
        ),
    ),
)

COFFEE = Department(
    "Coffee",
    "{} coffee capsule system",
    ("Velvet", "Harbour", "Lotus", "Tango"),
    ("Morello", "Baristo", "Cafora", "Nerano"),
    ("Roastwell", "Steamly", "Aromia", "Tazzino"),
    (
        Leaf(
            "Coffee Machines",
            "Espresso Machines",
            "Espresso Machine",
            "a short cup at a button press",
        ),
        Leaf(
            "Coffee",
            "Coffee Capsules",
            "Coffee Capsules",
            "dense crema and a full body",
            ("5 capsules", "10 capsules", "50 capsules", "100 capsules", "1000 capsules"),
            True,
        ),
        Leaf("Milk", "Milk Frothers", "Electric Milk Frother", "warm foam for cappuccino"),
        Leaf(
            "Machine Care",
            "Descaling Tablets",
            "Descaling Tablets",
            "a boiler free of limescale",
            ("2 tablets", "6 tablets", "12 tablets", "30 tablets", "200 tablets"),
            True,
        ),
        Leaf("Serving", "Espresso Cups", "Porcelain Espresso Cup Set", "serving guests in style"),
        Leaf(
            "Machine Care",
            "Water Filters",
            "Water Filter Cartridge",
            "soft water and better taste",
            ("1 filter", "2 filters", "4 filters", "8 filters", "50 filters"),
            True,
        ),
        Leaf(
            "Storage",
            "Capsule Stands",
            "Rotating Capsule Stand",
            "flavours in order on the counter",
        ),
        Leaf(
            "Machine Parts",
            "Water Tanks",
            "Spare Water Tank",
            "more cups without refilling",
            ("0.3 litre", "0.6 litre", "1 litre", "2 litres", "10 litres"),
        ),
        Leaf("Serving", "Serving Trays", "Coffee Serving Tray", "breakfast in bed"),
        Leaf(
            "Serving",
            "Travel Mugs",
            "Insulated Travel Mug",
            "hot coffee on the train",
            ("150 ml", "250 ml", "350 ml", "500 ml", "1200 ml"),
        ),
    ),
)

DEPARTMENTS = (PHOTOGRAPHY, POWER_TOOLS, COFFEE)
