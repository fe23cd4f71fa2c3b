"""Package metadata. ``constraints.txt`` pins the set of versions that was verified; the ranges here are wider."""

from pathlib import Path

from setuptools import find_packages, setup

MMSEG = ["mmengine>=0.10.0,<0.11", "mmcv-lite>=2.0.0,<2.2.0", "onedl-mmsegmentation>=1.4.0,<2", "opencv-python>=4.8", "setuptools<82"]
PAGE = ["gradio>=6.31,<7", "fastapi>=0.115", "uvicorn>=0.30"]
NOTEBOOKS = ["ipykernel>=6", "nbclient>=0.8", "nbformat>=5.7", "matplotlib>=3.7"]
DEV = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "playwright>=1.45", "ruff>=0.9"]

setup(
    name="sfp",
    version="0.1.0",
    description="Training-free open-vocabulary segmentation with a frozen CLIP: SFP and its peers on one trunk",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["sfp", "sfp.*"]),
    package_data={
        "sfp": ["paper_results.csv"],
        "sfp.clip": ["toyland.safetensors", "toyland.json"],
        "sfp.datasets.preparation": ["ade847_ids.txt"],
        "sfp.page": ["page.css"],
    },
    install_requires=[
        "torch>=2.1",
        "torchvision>=0.16",
        "open_clip_torch>=2.26,<4",
        "ftfy>=6",
        "regex>=2023.0",
        "filelock>=3.13",
        "numpy>=1.26",
        "pillow>=10.1",
        "safetensors>=0.4",
        "scikit-learn>=1.3",
        "scipy>=1.9",
        "timm>=1.0.3",
        "tqdm>=4.60",
    ],
    extras_require={
        "mmseg": MMSEG,
        "page": PAGE,
        "notebooks": NOTEBOOKS,
        "dev": [*MMSEG, *PAGE, *NOTEBOOKS, *DEV],
    },
)
