"""The vocabulary of the embedded catalogue: departments, their compatibility systems, product lines and categories.

All brands and systems are invented. A department is bought as a kit: a main product of one system, then accessories that
fit the same system. ``data/embedded.py`` combines the words.
"""

from __future__ import annotations

from typing import NamedTuple


class Leaf(NamedTuple):
    """A narrow category."""

    name: str                # plural, third level of the category path
    group: str               # second level
    noun: str                # what one item is called in its title
    sizes: tuple[str, str]   # of the first and the second generation
    purpose: str             # ends the sentence "Made for ..."
    consumable: bool = False


class Department(NamedTuple):
    """A first-level category with the systems that decide what fits together; ``leaves[0]`` is the main product."""

    name: str
    fits: str                       # how compatibility is said, e.g. "{} mount"
    systems: tuple[str, str, str]
    brands: tuple[str, str, str]    # the maker of each system
    rivals: tuple[str, str]         # third-party makers of accessories
    leaves: tuple[Leaf, Leaf, Leaf, Leaf, Leaf]


class Line(NamedTuple):
    """A product line: price tier, material and look that a buyer tends to stay with, whatever the department."""

    name: str
    tier: str
    material: str
    colour: str


LINES = (
    Line("Essential", "budget", "durable plastic", "white"),
    Line("Classic", "mid-range", "anodised aluminium", "silver"),
    Line("Pro", "professional", "hardened steel", "matte black"),
    Line("Terra", "eco-friendly", "recycled bamboo fibre", "natural green"),
)

DEPARTMENTS = (
    Department("Photography", "{} mount", ("Aurora", "Nexar", "Quanta"), ("Helvik", "Sorano", "Pentara"), ("Optiform", "Clearbay"), (
        Leaf("Mirrorless Cameras", "Cameras", "Mirrorless Camera", ("24 MP", "33 MP"), "stills and video in changing light"),
        Leaf("Prime Lenses", "Lenses", "Prime Lens", ("35 mm f/2", "50 mm f/1.8"), "portraits with a soft background"),
        Leaf("Camera Batteries", "Camera Power", "Camera Battery", ("1400 mAh", "2000 mAh"), "long days of shooting"),
        Leaf("Lens Filters", "Lens Accessories", "Polarising Lens Filter", ("52 mm", "67 mm"), "clear skies and water without glare"),
        Leaf("Camera Bags", "Carrying", "Camera Shoulder Bag", ("6 litre", "9 litre"), "carrying a body and two lenses"),
    )),
    Department("Power Tools", "{} battery platform", ("12V Compact", "18V Torque", "36V Max"), ("Brakko", "Titanor", "Voltrex"), ("Gripwell", "Steelo"), (
        Leaf("Cordless Drills", "Drills", "Cordless Drill Driver", ("45 Nm", "60 Nm"), "drilling in wood, metal and masonry"),
        Leaf("Tool Batteries", "Tool Power", "Tool Battery Pack", ("2 Ah", "4 Ah"), "a full day on site"),
        Leaf("Tool Chargers", "Tool Power", "Rapid Tool Charger", ("3 amp", "6 amp"), "topping up packs during a break"),
        Leaf("Circular Saws", "Saws", "Cordless Circular Saw", ("140 mm", "165 mm"), "straight cuts in boards and panels"),
        Leaf("Drill Bit Sets", "Drill Accessories", "Drill Bit Set", ("19 piece", "34 piece"), "clean holes in any material", True),
    )),
    Department("Coffee", "{} capsule", ("Brevo", "Cremita", "Lungano"), ("Morello", "Baristo", "Cafora"), ("Roastery Nine", "Steamly"), (
        Leaf("Capsule Machines", "Coffee Machines", "Capsule Coffee Machine", ("0.8 litre", "1.2 litre"), "espresso and lungo at a button press"),
        Leaf("Coffee Capsules", "Coffee", "Coffee Capsules", ("box of 50", "box of 100"), "a balanced cup with dense crema", True),
        Leaf("Descaling Kits", "Machine Care", "Descaling Kit", ("2 doses", "6 doses"), "keeping the boiler free of limescale", True),
        Leaf("Milk Frothers", "Milk", "Electric Milk Frother", ("150 ml", "300 ml"), "warm foam for cappuccino and latte"),
        Leaf("Capsule Stands", "Storage", "Capsule Stand", ("for 30 capsules", "for 60 capsules"), "keeping flavours in order on the counter"),
    )),
    Department("Printing", "{} cartridge series", ("Lumen 200", "Inkara 400", "Pagex 700"), ("Printova", "Letterix", "Paperon"), ("Refilla", "Toneco"), (
        Leaf("Inkjet Printers", "Printers", "Wireless Inkjet Printer", ("10 ppm", "16 ppm"), "documents and photos at home"),
        Leaf("Black Ink Cartridges", "Ink", "Black Ink Cartridge", ("300 pages", "600 pages"), "sharp text", True),
        Leaf("Colour Ink Cartridges", "Ink", "Colour Ink Cartridge", ("200 pages", "450 pages"), "vivid photos and charts", True),
        Leaf("Photo Paper", "Paper", "Glossy Photo Paper", ("50 sheets", "100 sheets"), "prints that dry at once", True),
        Leaf("Print Heads", "Printer Parts", "Replacement Print Head", ("single", "twin pack"), "restoring even lines"),
    )),
    Department("3D Printing", "{} hot end", ("Corex", "Deltra", "Monoflow"), ("Fablio", "Layermax", "Printsmith"), ("Filamenta", "Nozzlery"), (
        Leaf("3D Printers", "Printers and Kits", "Desktop 3D Printer", ("180 mm bed", "250 mm bed"), "prototypes and models on a desk"),
        Leaf("PLA Filament", "Filament", "PLA Filament Spool", ("500 g", "1 kg"), "smooth layers without warping", True),
        Leaf("Nozzles", "Hot End Parts", "Nozzle Set", ("0.4 mm", "0.6 mm"), "even extrusion", True),
        Leaf("Build Plates", "Bed Parts", "Flexible Build Plate", ("180 mm", "250 mm"), "prints that pop off when cool"),
        Leaf("Filament Dryers", "Filament Care", "Filament Dryer Box", ("one spool", "two spools"), "keeping spools dry while printing"),
    )),
    Department("Floor Care", "{} suction system", ("Cyclair", "Dustra", "Vortino"), ("Cleanova", "Sweepo", "Aerovac"), ("Brushly", "Filtrano"), (
        Leaf("Stick Vacuums", "Vacuums", "Cordless Stick Vacuum", ("40 minute", "60 minute"), "carpets, hard floors and stairs"),
        Leaf("Vacuum Filters", "Vacuum Parts", "Washable Vacuum Filter", ("single", "set of 3"), "catching pollen and fine dust", True),
        Leaf("Brush Rolls", "Vacuum Parts", "Soft Brush Roll", ("22 cm", "25 cm"), "delicate hard floors"),
        Leaf("Mop Attachments", "Wet Cleaning", "Mop Attachment", ("250 ml", "400 ml"), "wiping while you vacuum"),
        Leaf("Wall Docks", "Storage and Docks", "Wall Charging Dock", ("slim", "with shelf"), "parking and charging in one place"),
    )),
    Department("Aquariums", "{} tank format", ("Nano 30", "Cube 60", "Reef 120"), ("Aquaril", "Fishtown", "Coralia"), ("Reedbay", "Snailwise"), (
        Leaf("Aquarium Tanks", "Tanks", "Glass Aquarium Tank", ("with lid", "with cabinet"), "a planted freshwater display"),
        Leaf("Filter Pumps", "Water Care", "Aquarium Filter Pump", ("300 l/h", "600 l/h"), "clear and moving water"),
        Leaf("Filter Cartridges", "Water Care", "Carbon Filter Cartridge", ("pack of 2", "pack of 6"), "water without odour or tint", True),
        Leaf("Aquarium Lights", "Lighting", "LED Aquarium Light", ("12 watt", "24 watt"), "strong plant growth"),
        Leaf("Aquarium Heaters", "Heating", "Aquarium Heater", ("50 watt", "100 watt"), "a steady tropical temperature"),
    )),
    Department("Cycling", "{} wheel standard", ("26 inch Trail", "27.5 inch Enduro", "700C Road"), ("Velora", "Ridgeway", "Spoker"), ("Pedalis", "Treadmark"), (
        Leaf("Bicycles", "Bikes", "Bicycle", ("size M", "size L"), "commuting and weekend tours"),
        Leaf("Tyres", "Wheels", "Bicycle Tyre", ("wire bead", "folding"), "grip on wet and dry ground", True),
        Leaf("Inner Tubes", "Wheels", "Inner Tube", ("single", "pack of 3"), "quick repairs on the road", True),
        Leaf("Mudguards", "Frame Accessories", "Mudguard Set", ("short", "full length"), "dry legs in the rain"),
        Leaf("Wheel Bags", "Transport", "Wheel Bag", ("one wheel", "two wheels"), "carrying wheels by car or train"),
    )),
    Department("Gaming", "{} console", ("Orbit", "Pixela", "Zenbox"), ("Playforge", "Arcadia", "Joywell"), ("Gripstar", "Hexagear"), (
        Leaf("Game Consoles", "Consoles", "Game Console", ("512 GB", "1 TB"), "playing alone or with friends"),
        Leaf("Controllers", "Input", "Wireless Controller", ("with USB cable", "with back buttons"), "precise aiming without lag"),
        Leaf("Headsets", "Sound", "Gaming Headset", ("stereo", "surround"), "hearing every step and voice"),
        Leaf("Charging Docks", "Console Power", "Controller Charging Dock", ("one slot", "two slots"), "controllers that are always full"),
        Leaf("Storage Cards", "Memory", "Console Storage Card", ("256 GB", "512 GB"), "more games without deleting"),
    )),
    Department("Oral Care", "{} brush head fitting", ("Sonica", "Clickon", "Orbital"), ("Dentra", "Smilewell", "Brightly"), ("Mintage", "Pearlo"), (
        Leaf("Electric Toothbrushes", "Toothbrushes", "Electric Toothbrush", ("2 modes", "5 modes"), "gentle and thorough brushing"),
        Leaf("Brush Heads", "Replacement Heads", "Toothbrush Heads", ("pack of 4", "pack of 8"), "reaching between the teeth", True),
        Leaf("Tongue Cleaners", "Replacement Heads", "Tongue Cleaner Heads", ("pack of 2", "pack of 4"), "fresh breath", True),
        Leaf("Travel Cases", "Travel", "Toothbrush Travel Case", ("one brush", "with charger"), "a clean brush in any bag"),
        Leaf("Charging Stands", "Brush Power", "Toothbrush Charging Stand", ("single", "with head holder"), "a tidy and dry basin"),
    )),
)
