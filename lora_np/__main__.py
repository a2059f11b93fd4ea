"""``python -m lora_np`` runs the command ``lora-np``."""

import sys

from lora_np.cli import main

if __name__ == "__main__":
    sys.exit(main())
