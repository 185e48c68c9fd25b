"""The models, by name; each is imported when it is asked for."""

MODELS = {
    "mlp": "odist.models.mlp:EmbeddingMLP",
    "deepfm": "odist.models.deepfm:DeepFM",
    "dcn_v2": "odist.models.dcn:DCNV2",
    "lstm": "odist.models.lstm:LSTM",
    "transformer": "odist.models.transformer:Transformer",
    "resnet": "odist.models.resnet:ResNet",
    "wrn": "odist.models.wide_resnet:WideResNet",
}
