"""The analyser: spectra, measures of rank, and the spaces that a matrix's directions span."""

from lora_np.rank.spectrum import Spectrum, eckart_young_floor, spectrum
from lora_np.rank.subspaces import (
    principal_angles,
    random_similarity,
    subspace_similarity,
    svd_of_factors,
)

__all__ = [
    "Spectrum",
    "eckart_young_floor",
    "principal_angles",
    "random_similarity",
    "spectrum",
    "subspace_similarity",
    "svd_of_factors",
]
