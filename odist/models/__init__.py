"""The models, by name; each is imported when it is asked for."""

MODELS = {
    "mlp": "odist.models.mlp:EmbeddingMLP",
    "lstm": "odist.models.lstm:LSTM",
    "transformer": "odist.models.transformer:Transformer",
    "resnet": "odist.models.resnet:ResNet",
    "wrn": "odist.models.wide_resnet:WideResNet",
}
