"""`python tests/simulation`: see `simulate`."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))  # helpers shared by tests are modules there

from simulate import main

sys.exit(main())
