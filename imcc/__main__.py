"""``python -m imcc``."""

import sys

from imcc.cli.main import main

sys.exit(main())
