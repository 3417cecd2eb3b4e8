"""`t2i-rl heatmap` from a checkout: the token maps of one prompt's group as PNG, HTML and npz.

python -m scripts.heatmap "a photo of a red ring above a blue cross" --out runs/heatmap
"""

import sys

from t2i_rl.cli import main

if __name__ == "__main__":
    sys.exit(main(["heatmap", *sys.argv[1:]]))
