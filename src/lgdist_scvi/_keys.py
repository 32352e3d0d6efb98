"""Names under which a neighbourhood batch travels from AnnData to the module."""

from scvi import REGISTRY_KEYS

COUNTS = REGISTRY_KEYS.X_KEY  # (batch, n_genes) raw counts
MASK = "observed_mask"  # (batch, n_genes) 1 where an entry is known
GRAPH = "spatial_graph"
COORDINATES = "spatial_coordinates"
SAMPLE = "sample"
LIBRARY = REGISTRY_KEYS.SIZE_FACTOR_KEY  # (batch, 1) counts

PREFILL = "prefill"  # (n_obs, n_genes) log1p(CP10K) that stands in for missing entries of neighbours

IMAGE = "image"  # (batch, n_features) features of the patch around a spot; NaN where there is none
PATCH = "patch"  # (batch, size, size, 3) uint8 patch of the tissue around a spot
FOLD = "fold"  # (batch, 1) part of the data whose networks had no part of this spot; absent of spots that none has seen
SYNTHETIC = (
    "synthetic"  # (batch, n_patches, n_components) components of patches generated for a spot; NaN where there is none
)
TARGET_RATE = "target_rate"  # (batch, n_genes) expected share of the library that a model of images learns
TARGET_LATENT = "target_latent"  # (batch, n_draws, n_latent) latents that such rates may have

REGION_EFFECT = "region_effect"  # (batch, n_genes) effect of the slide and of the spot's surroundings
SPOT = "spot"  # (batch, 1) row of the spot in its AnnData
NEIGHBOR = (
    "neighbor_"  # prefix of registered fields, (n_unique, ...), of spots that are somebody's neighbours in this batch
)
NEIGHBOR_SPOT = "neighbor_spot"  # (n_unique, 1) rows of every spot that is somebody's neighbour in this batch
NEIGHBOR_IMAGE = "neighbor_image"  # (n_unique, n_features)
NEIGHBOR_COUNTS = "neighbor_counts"  # (n_unique, n_genes)
NEIGHBOR_MASK = "neighbor_mask"  # (n_unique, n_genes)
NEIGHBOR_PREFILL = "neighbor_prefill"  # (n_unique, n_genes)
NEIGHBOR_LIBRARY = "neighbor_library"  # (n_unique, 1)
NEIGHBOR_INDEX = "neighbor_index"  # (batch, k) rows of the n_unique spots
NEIGHBOR_DISTANCE = "neighbor_distance"  # (batch, k) in spot pitches
NEIGHBORS_FAR = "neighbors_far"  # (batch, 1) 1 where nothing is observed of any neighbour, and farther spots stand in
NEIGHBOR_VALID = "neighbor_valid"  # (batch, k), 0 where a spot has fewer neighbours
