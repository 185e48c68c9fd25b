"""The models, by name; each is imported when it is asked for."""

MODELS = {
    "mlp": "odist.models.mlp:EmbeddingMLP",
}
