"""``python -m minionerec.experiment.settings --schema`` prints the JSON schema."""

import sys

from minionerec.experiment.settings import schema

if sys.argv[1:] != ["--schema"]:
    sys.exit("usage: python -m minionerec.experiment.settings --schema")
sys.stdout.write(schema())
