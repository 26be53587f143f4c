"""`python tests/simulation`: see `simulate`."""

import sys

from simulate import main

sys.exit(main())
