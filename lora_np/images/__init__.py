"""Image generation: a diffusion model of letters, style adapters, fewer steps, and a judge."""

from lora_np.images.adapters import adapted, save_trained
from lora_np.images.denoiser import Denoiser, MlpBody, mlp_denoiser
from lora_np.images.distance import frechet, kernel_distance, nearest, spread
from lora_np.images.dit import DitBody, dit_denoiser
from lora_np.images.folder import load_base, make_base, save_base
from lora_np.images.glyphs import Letters, check_images, letters, prompt_of, words_of
from lora_np.images.judge import Judge, load_judge, save_judge, train_judge
from lora_np.images.latent import SvdCodec
from lora_np.images.objective import Consistency, VPrediction
from lora_np.images.refiner import AROUND, ConvNet, Refined, refine
from lora_np.images.samplers import SAMPLERS, consistency, ddim, ddpm, dpm_solver
from lora_np.images.sheet import save_png
from lora_np.images.training import (
    Base,
    BaseSettings,
    Collapsed,
    DistilSettings,
    StyleSettings,
    distil,
    train_base,
    train_style,
)

__all__ = [
    "AROUND",
    "SAMPLERS",
    "Base",
    "BaseSettings",
    "Collapsed",
    "Consistency",
    "ConvNet",
    "Denoiser",
    "DistilSettings",
    "DitBody",
    "Judge",
    "Letters",
    "MlpBody",
    "Refined",
    "StyleSettings",
    "SvdCodec",
    "VPrediction",
    "adapted",
    "check_images",
    "consistency",
    "ddim",
    "ddpm",
    "distil",
    "dit_denoiser",
    "dpm_solver",
    "frechet",
    "kernel_distance",
    "letters",
    "load_base",
    "load_judge",
    "make_base",
    "mlp_denoiser",
    "nearest",
    "prompt_of",
    "refine",
    "save_base",
    "save_judge",
    "save_png",
    "save_trained",
    "spread",
    "train_base",
    "train_judge",
    "train_style",
    "words_of",
]
