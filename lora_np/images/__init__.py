"""Images of letters: how they are drawn, their latents, and a judge of images that a model drew."""

from lora_np.images.distance import frechet, kernel_distance, nearest, spread
from lora_np.images.glyphs import Letters, check_images, letters, prompt_of, words_of
from lora_np.images.judge import Judge, load_judge, save_judge, train_judge
from lora_np.images.latent import SvdCodec

__all__ = [
    "Judge",
    "Letters",
    "SvdCodec",
    "check_images",
    "frechet",
    "kernel_distance",
    "letters",
    "load_judge",
    "nearest",
    "prompt_of",
    "save_judge",
    "spread",
    "train_judge",
    "words_of",
]
