"""Images of letters: how they are drawn, their latents, and a judge of images that a model drew."""

from lora_np.images.glyphs import Letters, check_images, letters, prompt_of, words_of
from lora_np.images.latent import SvdCodec

__all__ = ["Letters", "SvdCodec", "check_images", "letters", "prompt_of", "words_of"]
