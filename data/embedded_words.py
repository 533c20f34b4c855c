"""The vocabulary of the embedded catalogue: departments, what fits together, product lines, sizes and categories.

Brands and systems are invented. A department is bought as a kit: a main product of one system, then accessories that
fit the same system, roughly in the order of ``Department.leaves``. ``data/embedded.py`` combines the words.
"""

from __future__ import annotations

from typing import NamedTuple


class Leaf(NamedTuple):
    """A narrow category. Its items differ either in their product line or, where ``sizes`` are given, in their size."""

    group: str                       # second level of the category path
    name: str                        # third level, plural
    noun: str                        # what one item is called in its title
    purpose: str                     # ends the sentence "Made for ..."
    sizes: tuple[str, ...] = ()      # one per entry of SCALES
    consumable: bool = False         # bought again and again


class Department(NamedTuple):
    """A first-level category; ``leaves[0]`` is the main product of its kits."""

    name: str
    fits: str                        # how compatibility is said, e.g. "{} mount"
    systems: tuple[str, ...]
    makers: tuple[str, ...]          # one brand per system, which makes its main products
    rivals: tuple[str, ...]          # brands that make accessories for every system
    leaves: tuple[Leaf, ...]


class Line(NamedTuple):
    """A product line: price tier, material and look that a buyer tends to stay with, whatever the department."""

    name: str
    tier: str
    material: str
    colour: str


class Scale(NamedTuple):
    """A size step: how heavily a buyer uses things, whatever the department."""

    name: str
    use: str


LINES = (
    Line("Essential", "low-priced", "moulded plastic", "white"),
    Line("Classic", "mid-range", "brushed aluminium", "silver"),
    Line("Pro", "professional", "hardened steel", "matte black"),
    Line("Terra", "sustainable", "recycled bamboo fibre", "natural green"),
)

SCALES = (
    Scale("Mini", "occasional use on the go"),
    Scale("Everyday", "daily use at home"),
    Scale("Plus", "frequent use by the whole family"),
    Scale("Max", "heavy use from morning to night"),
)

PHOTOGRAPHY = Department(
    "Photography", "{} camera mount", ("Aurora", "Nexar", "Quanta"), ("Helvik", "Sorano", "Pentara"), ("Optiform", "Clearbay"), (
        Leaf("Cameras", "Mirrorless Cameras", "Mirrorless Camera", "stills and video in changing light"),
        Leaf("Camera Power", "Camera Batteries", "Camera Battery", "long days of shooting",
             ("900 mAh", "1400 mAh", "2000 mAh", "3000 mAh")),
        Leaf("Lenses", "Prime Lenses", "Prime Lens", "portraits with a soft background"),
        Leaf("Memory", "Memory Cards", "Memory Card", "burst series and 4K video", ("32 GB", "64 GB", "128 GB", "512 GB"), True),
        Leaf("Lenses", "Zoom Lenses", "Zoom Lens", "travel with a single lens"),
        Leaf("Lens Care", "Lens Cleaning Wipes", "Lens Cleaning Wipes", "glass without streaks",
             ("20 wipes", "50 wipes", "100 wipes", "300 wipes"), True),
        Leaf("Lens Accessories", "Lens Hoods", "Lens Hood", "pictures without flare"),
        Leaf("Carrying", "Camera Bags", "Camera Bag", "carrying a body with lenses",
             ("3 litre", "6 litre", "12 litre", "25 litre")),
        Leaf("Lighting", "Camera Flashes", "Camera Flash", "even light indoors"),
        Leaf("Supports", "Tripods", "Tripod", "sharp pictures at night", ("40 cm", "110 cm", "150 cm", "190 cm")),
    ))

POWER_TOOLS = Department(
    "Power Tools", "{} battery platform",
    ("12 volt Click", "18 volt Torque", "36 volt Hydra"), ("Brakko", "Titanor", "Voltrex"), ("Gripwell", "Steelo"), (
        Leaf("Drilling", "Cordless Drills", "Cordless Drill", "holes in wood, metal and masonry"),
        Leaf("Tool Power", "Tool Batteries", "Tool Battery", "work far from a socket", ("1.5 Ah", "2 Ah", "4 Ah", "8 Ah")),
        Leaf("Tool Power", "Tool Chargers", "Tool Charger", "topping up packs during a break"),
        Leaf("Drilling", "Drill Bit Sets", "Drill Bit Set", "clean holes in any material",
             ("7 pieces", "19 pieces", "34 pieces", "100 pieces"), True),
        Leaf("Sawing", "Circular Saws", "Cordless Circular Saw", "straight cuts in boards"),
        Leaf("Sawing", "Saw Blades", "Saw Blade", "splinter-free edges", ("85 mm", "140 mm", "165 mm", "190 mm"), True),
        Leaf("Sanding", "Random Orbit Sanders", "Cordless Sander", "surfaces ready for paint"),
        Leaf("Sanding", "Sanding Discs", "Sanding Discs", "a fine and even finish",
             ("5 discs", "20 discs", "50 discs", "200 discs"), True),
        Leaf("Site Light", "Work Lights", "Cordless Work Light", "dark cellars and attics"),
        Leaf("Tool Storage", "Tool Cases", "Tool Case", "everything in one place",
             ("8 litre", "15 litre", "30 litre", "60 litre")),
    ))

COFFEE = Department(
    "Coffee", "{} capsule system",
    ("Brevo", "Cremita", "Lungano"), ("Morello", "Baristo", "Cafora"), ("Roastery Nine", "Steamly"), (
        Leaf("Coffee Machines", "Capsule Machines", "Capsule Coffee Machine", "espresso at a button press"),
        Leaf("Coffee", "Espresso Capsules", "Espresso Capsules", "a short cup with dense crema",
             ("10 capsules", "50 capsules", "100 capsules", "300 capsules"), True),
        Leaf("Milk", "Milk Frothers", "Milk Frother", "warm foam for cappuccino"),
        Leaf("Coffee", "Lungo Capsules", "Lungo Capsules", "a long and mild cup",
             ("10 capsules", "50 capsules", "100 capsules", "300 capsules"), True),
        Leaf("Serving", "Espresso Cups", "Espresso Cup Set", "serving guests in style"),
        Leaf("Machine Care", "Descaling Liquids", "Descaling Liquid", "a boiler free of limescale",
             ("100 ml", "250 ml", "500 ml", "2 litres"), True),
        Leaf("Storage", "Capsule Stands", "Capsule Stand", "flavours in order on the counter"),
        Leaf("Machine Care", "Water Filters", "Machine Water Filter", "soft water and better taste",
             ("1 filter", "2 filters", "4 filters", "12 filters"), True),
        Leaf("Serving", "Travel Mugs", "Coffee Travel Mug", "hot coffee on the train"),
        Leaf("Machine Parts", "Water Tanks", "Machine Water Tank", "more cups without refilling",
             ("0.5 litre", "0.8 litre", "1.2 litres", "2 litres")),
    ))

CYCLING = Department(
    "Cycling", "{} wheel standard",
    ("26 inch Trail", "27.5 inch Enduro", "28 inch Road"), ("Velora", "Ridgeway", "Spoker"), ("Pedalis", "Treadmark"), (
        Leaf("Bicycles", "Bicycles", "Bicycle", "commuting and weekend tours"),
        Leaf("Tyres and Tubes", "Inner Tubes", "Inner Tube", "quick repairs on the road",
             ("1 tube", "2 tubes", "5 tubes", "20 tubes"), True),
        Leaf("Frame Parts", "Mudguards", "Mudguard Set", "dry legs in the rain"),
        Leaf("Tyres and Tubes", "Bicycle Tyres", "Bicycle Tyre", "grip on wet ground",
             ("32 mm", "40 mm", "47 mm", "60 mm"), True),
        Leaf("Frame Parts", "Luggage Racks", "Luggage Rack", "carrying bags over the rear wheel"),
        Leaf("Bike Care", "Chain Lubricants", "Chain Lubricant", "a quiet drive in any weather",
             ("20 ml", "50 ml", "100 ml", "500 ml"), True),
        Leaf("Wheels", "Wheel Sets", "Wheel Set", "a lighter and stiffer ride"),
        Leaf("Transport", "Wheel Bags", "Wheel Bag", "taking wheels by car", ("1 wheel", "2 wheels", "3 wheels", "6 wheels")),
        Leaf("Bike Care", "Repair Stands", "Repair Stand", "working at a good height"),
        Leaf("Bike Care", "Tyre Pumps", "Tyre Pump", "full pressure in a minute", ("15 cm", "25 cm", "60 cm", "75 cm")),
    ))

GAMING = Department(
    "Gaming", "{} console platform",
    ("Orbit", "Pixela", "Zenbox"), ("Playforge", "Arcadia", "Joywell"), ("Gripstar", "Hexagear"), (
        Leaf("Consoles", "Game Consoles", "Game Console", "playing alone or with friends"),
        Leaf("Console Storage", "Storage Drives", "Console Storage Drive", "more games without deleting",
             ("256 GB", "512 GB", "1 TB", "4 TB")),
        Leaf("Input", "Controllers", "Wireless Controller", "precise aiming without lag"),
        Leaf("Console Power", "Controller Batteries", "Controller Battery", "sessions without a cable",
             ("600 mAh", "1000 mAh", "1500 mAh", "3000 mAh"), True),
        Leaf("Sound", "Gaming Headsets", "Gaming Headset", "hearing every step and voice"),
        Leaf("Credits", "Game Cards", "Prepaid Game Card", "buying games at home",
             ("10 credits", "25 credits", "50 credits", "200 credits"), True),
        Leaf("Console Power", "Charging Docks", "Charging Dock", "controllers that are always full"),
        Leaf("Input", "Thumb Grips", "Thumb Grips", "a firm hold with wet hands",
             ("2 grips", "4 grips", "8 grips", "20 grips"), True),
        Leaf("Furniture", "Console Stands", "Console Stand", "cool air around the console"),
        Leaf("Furniture", "Carrying Cases", "Console Carrying Case", "taking the console to friends",
             ("4 litre", "8 litre", "14 litre", "25 litre")),
    ))

DEPARTMENTS = (PHOTOGRAPHY, POWER_TOOLS, COFFEE, CYCLING, GAMING)
