import sys

from fastue.cli import main

sys.exit(main())
