"""Package metadata; ``constraints.txt`` pins the verified versions, the ranges here are wider.

An upper bound is the next major version, a lower one has no known hole that matters here:
docs/supply.md has all of them, and why.

configs/ travels in a wheel as the package sfp.configs; sfp/files.py finds it in both places. The
README's links lead to the repository where SFP_URL names its address while a wheel is built, such
as a forge's .../blob/main; without it pictures are left out of the description and links are plain
words, as a package index has none of these files.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

MMSEG = [
    "mmengine>=0.10.0,<0.11",
    "mmcv-lite>=2.0.0,<2.2.0",
    "onedl-mmsegmentation>=1.4.0,<2",
    "opencv-python>=4.10.0.84,<6",
    "prettytable>=3.7,<4",
    "setuptools>=78.1.1,<82",
]
PAGE = ["gradio>=6.31,<7", "fastapi>=0.133,<1", "starlette>=1.0.1,<2", "uvicorn>=0.30,<1"]
VIDEO = ["av>=17.1,<19"]
RAY = ["ray[data]>=2.60,<3", "pyarrow>=25,<27"]
NOTEBOOKS = ["ipykernel>=6,<8", "nbclient>=0.8,<1", "nbformat>=5.7,<6"]
VISION = ["transformers>=4.57,<6"]
DEV = [
    "pytest>=8,<10",
    "pytest-xdist>=3.5,<4",
    "hypothesis>=6.100,<7",
    "playwright>=1.45,<2",
    "packaging>=23.2",
    "pyyaml>=6.0.1,<7",
    "ruff>=0.9,<1",
    "supervision>=0.26,<1",
]
URL = os.environ.get("SFP_URL", "").rstrip("/")


def description() -> str:
    """README.md as a page of its own."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if URL:
        return re.sub(r"\]\((?!\w+:|#)", f"]({URL}/", text)
    text = re.sub(r"^!\[[^\]]*\]\((?!\w+:)[^)]*\)\n+", "", text, flags=re.M)
    return re.sub(r"\[([^\]]*)\]\((?!\w+:|#)[^)]*\)", r"\1", text)


setup(
    name="sfp-ovss",
    version="0.1.0",
    description="Training-free open-vocabulary segmentation with a frozen CLIP: SFP and its peers",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The SFP toolkit's authors",
    license="MIT",
    license_files=["LICENSE"],
    project_urls={"Repository": URL} if URL else {},
    keywords="open-vocabulary semantic segmentation, CLIP, training-free, outlier tokens",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["sfp", "sfp.*"]), "sfp.configs", "sfp.configs.methods"],
    package_dir={"sfp.configs": "configs", "sfp.configs.methods": "configs/methods"},
    package_data={
        "sfp.configs": ["*.txt"],
        "sfp.evaluation": ["paper_results.csv"],
        "sfp.clip": [
            "toyland*.safetensors",
            "toyland*.json",
            "register_neurons.json",
            "models.csv",
        ],
        "sfp.experiments": ["ablations.csv", "ablation_rows.csv"],
        "sfp.datasets": ["toyland_prompts.json"],
        "sfp.datasets.preparation": ["ade847_ids.txt"],
        "sfp.page": ["page.css"],
        "sfp.verification": ["toyland_figures.csv"],
    },
    entry_points="[console_scripts]\nsfp = sfp.__main__:main\n",
    install_requires=[
        "torch>=2.10,<3",
        "torchvision>=0.25,<1",
        "open_clip_torch>=3.0,<4",
        "huggingface_hub>=0.23,<3",
        "ftfy>=6.1.1,<7",
        "regex>=2023.6.3",
        "filelock>=3.20.3,<5",
        "matplotlib>=3.9,<4",
        "numpy>=2.0.1,<3",
        "pillow>=12.2,<13",
        "pycocotools>=2.0.10,<3",
        "safetensors>=0.4,<1",
        "scikit-learn>=1.5.0,<2",
        "scipy>=1.13.0,<2",
        "timm>=1.0.26,<2",
        "tqdm>=4.66.3,<5",
    ],
    extras_require={
        "mmseg": MMSEG,
        "page": PAGE,
        "notebooks": NOTEBOOKS,
        "vision": VISION,
        "video": VIDEO,
        "ray": RAY,
        "dev": [*MMSEG, *PAGE, *NOTEBOOKS, *VISION, *VIDEO, *DEV],
    },
)
