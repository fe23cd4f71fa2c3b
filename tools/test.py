"""Evaluate one config, in OpenMMLab's manner: ``sfp evaluate`` under the name that its users know.

python tools/test.py configs/cfg_toyland.py --work-dir work_dirs/toyland --show-dir pictures
python tools/test.py configs/cfg_voc21.py --cfg-options model.method=SC-CLIP model.clip=ViT-L/14
"""

import sys

from sfp.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
