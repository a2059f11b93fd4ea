"""Mathematics of the analyser: spectra, measures of rank, subspaces, and noise."""

from lora_np.rank.change import Amplification, Intruders, amplification, intruder_dimensions
from lora_np.rank.factors import svd_of_factors
from lora_np.rank.floor import best_rank_error, eckart_young_floor, smallest_rank
from lora_np.rank.noise import (
    estimate_noise,
    gavish_donoho_threshold,
    marchenko_pastur_edge,
    marchenko_pastur_median,
    uneven_noise_edge,
)
from lora_np.rank.planted import (
    Recovery,
    bootstrap_interval,
    planted_matrix,
    recovery,
    recovery_table,
)
from lora_np.rank.randomised import ResidualBound, dense_svd, randomised_svd
from lora_np.rank.spectrum import Spectrum, spectrum
from lora_np.rank.subspaces import principal_angles, random_similarity, subspace_similarity

__all__ = [
    "Amplification",
    "Intruders",
    "Recovery",
    "ResidualBound",
    "Spectrum",
    "amplification",
    "best_rank_error",
    "bootstrap_interval",
    "dense_svd",
    "eckart_young_floor",
    "estimate_noise",
    "gavish_donoho_threshold",
    "intruder_dimensions",
    "marchenko_pastur_edge",
    "marchenko_pastur_median",
    "planted_matrix",
    "principal_angles",
    "random_similarity",
    "randomised_svd",
    "recovery",
    "recovery_table",
    "smallest_rank",
    "spectrum",
    "subspace_similarity",
    "svd_of_factors",
    "uneven_noise_edge",
]
